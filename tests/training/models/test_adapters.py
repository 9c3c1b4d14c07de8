"""A policy that starts from an adapter: trained on or merged, never left out; and what LoRA saves, loaded by plain tools."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from grpo_training.config import ConfigError, ModelConfig, TrainConfig
from grpo_training.models.adapters import adapter_at, resolved
from grpo_training.models.loading import load_model
from grpo_training.models.lora import add_adapter, merged_state
from grpo_training.models.weights import save_whole_model
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from ..completions_server import CompletionsServer
from ..conftest import EOS, TinyReference

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks for it

MakeConfig = Callable[..., TrainConfig]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def adapter(tiny_path: Path, tmp_path: Path) -> Path:
    """An adapter as peft writes it, far from nothing, with a rank and layers that are nobody's default."""
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_path)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def by_peft(base: Path, directory: Path) -> torch.Tensor:
    return logits(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(directory)).eval())


def edit(adapter: Path, **settings: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_without_lora_it_is_merged_and_all_of_it_is_trained(
    adapter: Path, tiny_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(model={"name": str(adapter)}, loss={"beta": 0.0}, trainer={"steps": 1, "save_model": True})
    loaded = load_model(config.model)
    torch.testing.assert_close(logits(loaded.model), by_peft(tiny_path, adapter), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(loaded.model), logits(AutoModelForCausalLM.from_pretrained(tiny_path)), atol=0.1)
    assert {n for n, p in loaded.model.named_parameters() if p.requires_grad} == dict(
        LlamaForCausalLM.named_parameters(AutoModelForCausalLM.from_pretrained(tiny_path))
    ).keys()
    train(config)
    saved = AutoModelForCausalLM.from_pretrained(config.trainer.output / "model")
    # One step of AdamW at 1e-3 away from the merged policy, and not near the base.
    assert (logits(saved) - by_peft(tiny_path, adapter)).abs().max() < 0.5
    assert (logits(saved) - logits(AutoModelForCausalLM.from_pretrained(tiny_path))).abs().max() > 1


def test_with_lora_it_is_trained_on(
    adapter: Path, tiny_path: Path, make_config: MakeConfig, reference_server, varied_task
) -> None:
    def config(steps: int) -> TrainConfig:
        return make_config(
            reference_server.url,
            model={"name": str(adapter)},
            task=varied_task,
            lora={"dropout": 0.1, "save_merged": True},
            trainer={"steps": steps, "checkpoint_every": 1, "save_model": True},
        )

    train(config(1))
    output = config(1).trainer.output
    assert json.loads((output / "config.json").read_text())["lora"]["r"] == 3  # what was trained, and no default
    before, after = (
        load_file(adapter / "adapter_model.safetensors"),
        load_file(output / "model/adapter_model.safetensors"),
    )
    assert before.keys() == after.keys()
    moved = max(float((after[k] - v).abs().max()) for k, v in before.items())
    assert 0 < moved < 2e-3  # one step of AdamW at 1e-3
    settings = json.loads((output / "model" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], Path(settings["base_model_name_or_path"])) == (3, 7, tiny_path)
    merged = AutoModelForCausalLM.from_pretrained(output / "merged")
    torch.testing.assert_close(logits(merged), by_peft(tiny_path, output / "model"), atol=1e-5, rtol=1e-5)
    checkpoint = by_peft(tiny_path, output / "checkpoints" / "step-000001")
    torch.testing.assert_close(checkpoint, by_peft(tiny_path, output / "model"))
    assert train(config(2), resume=True)["steps"] == 2


def test_its_first_policy_is_the_adapters(adapter: Path, tiny_path: Path, make_config: MakeConfig) -> None:
    config = resolved(make_config(model={"name": str(adapter)}, lora={}))
    assert config.lora is not None
    assert (config.lora.r, config.lora.alpha, config.lora.target_modules) == (3, 7, ("down_proj", "q_proj"))
    loaded = load_model(config.model, adapter="leave")
    torch.testing.assert_close(logits(loaded.model), logits(AutoModelForCausalLM.from_pretrained(tiny_path)))
    add_adapter(loaded.model, config.lora, seed=0, start=config.model.name)
    torch.testing.assert_close(logits(loaded.model), by_peft(tiny_path, adapter), atol=1e-5, rtol=1e-5)


def test_a_lora_section_that_asks_for_another_adapter(adapter: Path, make_config: MakeConfig) -> None:
    name = {"name": str(adapter)}
    same = make_config(model=name, lora={"r": 3, "alpha": 7, "target_modules": ["q_proj", "down_proj"]})
    assert resolved(resolved(same)) == resolved(same)
    for field, value in (("r", 4), ("alpha", 32), ("target_modules", ["q_proj"])):
        with pytest.raises(
            ConfigError, match=rf"lora\.{field}=.*, but the adapter that is trained on .* leave the field out"
        ):
            resolved(make_config(model=name, lora={field: value}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"base_model_name_or_path": "./nowhere"}, "names the base model ./nowhere, and there is no such directory"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"peft_type": "PROMPT_TUNING"}, "an adapter of kind PROMPT_TUNING"),
    ],
)
def test_adapters_that_no_policy_can_start_from(adapter: Path, settings: dict[str, object], says: str) -> None:
    edit(adapter, **settings)
    with pytest.raises(ConfigError, match=says):
        adapter_at(str(adapter))


def test_broken_directories(adapter: Path, tmp_path: Path) -> None:
    assert adapter_at("demo") is None
    assert adapter_at(str(tmp_path)) is None
    shutil.copytree(adapter, tmp_path / "second")
    edit(tmp_path / "second", base_model_name_or_path=str(adapter))
    with pytest.raises(ConfigError, match="is an adapter itself"):
        adapter_at(str(tmp_path / "second"))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"and no adapter_model\.safetensors"):
        adapter_at(str(adapter))
    (adapter / "adapter_config.json").write_text("[")
    with pytest.raises(ConfigError, match="is not an adapter's configuration"):
        adapter_at(str(adapter))


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_an_adapter_that_does_not_fit_is_refused(
    adapter: Path, make_config: MakeConfig, lora: bool, fault: str
) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if "layers.1." in n and "lora_A" in n)
    if fault == "missing":
        del tensors[name]
    elif fault == "unknown":
        tensors[name.replace("layers.1", "layers.9")] = tensors[name].clone()
    else:
        tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, file)
    config = make_config(model={"name": str(adapter)}, loss={"beta": 0.0}, **({"lora": {}} if lora else {}))
    with pytest.raises(ConfigError, match="does not fit its base"):
        train(config)


def test_the_merged_state_leaves_the_model_as_it_is(
    adapter: Path, tiny: LlamaForCausalLM, tiny_path: Path, make_config: MakeConfig
) -> None:
    config = resolved(make_config(model={"name": str(adapter)}, lora={}))
    assert config.lora is not None
    loaded = load_model(config.model, adapter="leave")
    add_adapter(loaded.model, config.lora, seed=0, start=str(adapter))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    assert merged_state(loaded.model).keys() == tiny.state_dict().keys()
    save_whole_model(loaded, adapter.parent / "whole")
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    saved = AutoModelForCausalLM.from_pretrained(adapter.parent / "whole")
    torch.testing.assert_close(logits(saved), by_peft(tiny_path, adapter), atol=1e-5, rtol=1e-5)
    assert len(AutoTokenizer.from_pretrained(adapter.parent / "whole")) == len(loaded.tokenizer)


def test_a_rollout_server_gets_a_model_that_it_can_load(
    tiny_path: Path, make_config: MakeConfig, reference_server, varied_task, tmp_path: Path
) -> None:
    """Under LoRA too: what is served after a sync samples as the policy does."""
    script = "import sys, shutil; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)"
    with CompletionsServer(tiny_path, frozenset({EOS})) as server:
        config = make_config(
            reference_server.url,
            task=varied_task,
            lora={"r": 2},
            optimizer={"lr": 1e-2},
            rollout={
                "backend": "openai",
                "base_url": server.url,
                "model": "tiny",
                "sync_every": 1,
                "sync_command": [sys.executable, "-c", script, "{path}", str(tmp_path / "copy")],
            },
            trainer={"steps": 2, "checkpoint_every": 1, "keep_checkpoints": 2},
        )
        train(config)
    # Brought ahead of the second step: the policy after the first.
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    expected = by_peft(tiny_path, config.trainer.output / "checkpoints" / "step-000001")
    torch.testing.assert_close(logits(served), expected, atol=1e-5, rtol=1e-5)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(tiny_path))).abs().max() > 1e-3
    assert not list((config.trainer.output / "served").glob("*.partial"))


@pytest.mark.parametrize("lora", [None, {}])
def test_beside_base_and_adapter_the_kl_begins_at_0_and_beside_the_base_it_does_not(
    adapter: Path, tiny: LlamaForCausalLM, make_config: MakeConfig, reference_server: TinyReference, lora: object
) -> None:
    merged = load_model(ModelConfig(name=str(adapter), device="cpu")).model
    found: list[float] = []
    for name, hosted in (("both", merged), ("base", tiny)):
        reference_server.model = hosted
        sections = {} if lora is None else {"lora": lora}
        config = make_config(
            reference_server.url,
            model={"name": str(adapter)},
            trainer={"steps": 1, "output": str(adapter.parent / name)},
            **sections,
        )
        train(config)
        found.append(read_records(config.trainer.output / "metrics.jsonl")[0]["kl"])
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[1] > 1e-2
