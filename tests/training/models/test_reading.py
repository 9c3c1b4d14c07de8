"""A policy, an adapter or a checkpoint that is not whole is refused by one sentence that names what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from grpo_training.config import CheckpointError, ConfigError, LoraConfig, ModelConfig
from grpo_training.models.adapters import adapter_at, merge_into
from grpo_training.models.loading import load_model
from grpo_training.models.lora import add_adapter
from grpo_training.run.checkpoint import Checkpoints, TrainerState, load_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
NAN = torch.tensor(float("nan"))


def rewrite(file: Path, change: Change) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def refused(path: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(ModelConfig(name=str(path), device="cpu"))
    told = str(caught.value)
    assert told.startswith("model.name: ")
    assert "\n" not in told
    return told


@pytest.fixture
def broken(tiny_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_path, tmp_path / "broken"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {f"_orig_mod.{n}": v for n, v in t.items()}, "strip '_orig_mod.' from the names"),
        (lambda t: {f"module.{n}": v for n, v in t.items()}, "strip 'module.' from the names"),
        (lambda t: {n: v for n, v in t.items() if "layers.1." not in n}, "config.json says 2 of model.layers.*"),
        (
            lambda t: {n: v for n, v in t.items() if "embed" not in n},
            "it lacks lm_head.weight, model.embed_tokens.weight",
        ),
        (lambda t: t | {"output.weight": torch.ones(3)}, "no place for output.weight"),
        (
            lambda t: {n: v[:-1].clone() if "norm" in n else v for n, v in t.items()},
            "input_layernorm.weight 31, not 32",
        ),
        (
            lambda t: {n: v * NAN if n == "model.norm.weight" else v for n, v in t.items()},
            "NaN or infinity, in model.norm",
        ),
    ],
)
def test_weights_that_do_not_fit(change: Change, reason: str, broken: Path) -> None:
    rewrite(broken / "model.safetensors", change)
    assert reason in refused(broken)


def test_files_that_cannot_be_read(broken: Path) -> None:
    file, config = broken / "model.safetensors", broken / "config.json"
    plain = config.read_text()
    config.write_text(json.dumps(json.loads(plain) | {"quantization_config": {"quant_method": "awq", "bits": 4}}))
    assert "gptqmodel" in refused(broken)
    config.write_text(plain)
    os.truncate(file, file.stat().st_size // 2)
    assert "model.safetensors is cut off" in refused(broken)
    file.unlink()
    assert "it holds no weights (model.safetensors)" in refused(broken)


def test_a_tokenizer_that_cannot_be_read(broken: Path) -> None:
    (broken / "tokenizer.json").write_text("{}")
    assert "cannot be used" in refused(broken)


@pytest.mark.parametrize("name", ["./nope", "a/b/nope", "nope.gguf"])
def test_a_path_that_is_not_there(name: str) -> None:
    kind = "file" if name.endswith("gguf") else "directory"
    assert refused(name) == f"model.name: there is no {kind} {name}"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda t: {n: v * NAN if "layers.1.self_attn.v_proj.lora_A" in n else v for n, v in t.items()},
            "NaN or infinity, in",
        ),
        (lambda t: dict(list(t.items())[1:]), "missing"),
        (
            lambda t: t | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)},
            "unknown",
        ),
    ],
)
def test_an_adapter_that_does_not_fit(change: Change, reason: str, tiny_path: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = LlamaForCausalLM.from_pretrained(tiny_path)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(base, settings).save_pretrained(tmp_path)
    rewrite(tmp_path / "adapter_model.safetensors", change)
    adapter = adapter_at(str(tmp_path))
    assert adapter is not None
    with pytest.raises(ConfigError, match=reason):
        merge_into(LlamaForCausalLM.from_pretrained(tiny_path), adapter)
    with pytest.raises(ConfigError, match=reason):
        add_adapter(
            LlamaForCausalLM.from_pretrained(tiny_path),
            LoraConfig(r=4, target_modules=("q_proj", "v_proj")),
            seed=0,
            start=str(tmp_path),
        )
    os.truncate(tmp_path / "adapter_model.safetensors", 500)
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors is cut off"):
        adapter_at(str(tmp_path))


@pytest.fixture
def checkpoint(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    optimizer = torch.optim.SGD(tiny.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    state = TrainerState(1, None, {}, None)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    return checkpoints.save(state, tiny, tokenizer, optimizer.state_dict(), scheduler.state_dict())


def not_resumed(path: Path, tiny_path: Path) -> str:
    model = LlamaForCausalLM.from_pretrained(tiny_path)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
    told = str(caught.value)
    assert told.startswith(str(path))
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda t: {n: v[:-1].clone() if "norm" in n else v for n, v in t.items()},
            "input_layernorm.weight 31, not 32",
        ),
        (
            lambda t: {n: v for n, v in t.items() if "layers.1.mlp" not in n},
            "it lacks model.layers.1.mlp.down_proj.weight",
        ),
        (lambda t: t | {"output.weight": torch.ones(3)}, "it has output.weight too many"),
        (
            lambda t: {n: v * NAN if n == "model.norm.weight" else v for n, v in t.items()},
            "NaN or infinity, in model.norm",
        ),
    ],
)
def test_a_checkpoint_of_other_weights(change: Change, reason: str, checkpoint: Path, tiny_path: Path) -> None:
    rewrite(checkpoint / "model.safetensors", change)
    assert reason in not_resumed(checkpoint, tiny_path)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_that_is_not_whole(file: str, checkpoint: Path, tiny_path: Path) -> None:
    os.truncate(checkpoint / file, 20)
    told = not_resumed(checkpoint, tiny_path)
    assert "cannot be read" in told
    (checkpoint / file).unlink()
    assert not_resumed(checkpoint, tiny_path).endswith(f"is not a complete checkpoint: {file} is missing")
