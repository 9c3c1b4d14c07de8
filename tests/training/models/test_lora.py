"""LoRA: only the adapter moves, checkpoints hold it and go on bit for bit, and the merged model is the same policy."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from grpo_training.config import CheckpointError, ConfigError, LoraConfig, TrainConfig
from grpo_training.models.lora import add_adapter
from grpo_training.report.metrics import read_records
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run.loop import train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

peft = pytest.importorskip("peft")

MakeConfig = Callable[..., TrainConfig]


def rollout() -> Rollout:
    ids = torch.randint(3, 80, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([4, 1, 6, 3])[:, None]
    zeros = torch.zeros(4, 6)
    return Rollout([[5, 6, 7], [12, 13]], 2, ids.where(mask, 0), mask, zeros, zeros, mask[:, 0])


def test_an_adapter_begins_as_nothing_and_alone_has_gradients(tiny: LlamaForCausalLM) -> None:
    model = copy.deepcopy(tiny)
    before = Policy(model).logprobs(rollout()).detach()
    add_adapter(model, LoraConfig(r=4), seed=0)
    policy = Policy(model)
    assert (policy.way, policy.fused) == ("packed", True)
    assert torch.equal(policy.logprobs(rollout()).detach(), before)
    policy.logprobs(rollout()).square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(with_gradient) == 2 * 2 * 7  # A and B, two layers, seven linear layers each
    assert not any(module.training for module in model.modules())


def test_dropout_is_for_gradients_alone(tiny: LlamaForCausalLM) -> None:
    model = copy.deepcopy(tiny)
    add_adapter(model, LoraConfig(r=4, dropout=0.5), seed=0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    policy = Policy(model)
    assert policy.way == "packed"
    assert not torch.equal(policy.logprobs(rollout()), policy.logprobs(rollout()))
    with torch.no_grad():
        assert torch.equal(policy.logprobs(rollout()), policy.logprobs(rollout()))


def test_what_cannot_be_adapted_is_refused(tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"lora\.target_modules"):
        add_adapter(copy.deepcopy(tiny), LoraConfig(target_modules=("no_such_layer",)), seed=0)
    with pytest.warns(UserWarning, match="tied layer"), pytest.raises(ConfigError, match="output layer"):
        add_adapter(copy.deepcopy(tiny), LoraConfig(target_modules=("q_proj", "lm_head")), seed=0)
    monkeypatch.setattr("grpo_training.models.lora.find_spec", lambda name: None if name == "peft" else find_spec(name))
    with pytest.raises(ConfigError, match=r"grpo-refserver\[lora\]"):
        add_adapter(copy.deepcopy(tiny), LoraConfig(), seed=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_a_run_its_resume_and_what_it_saves(
    make_config: MakeConfig, reference_server, tiny_path: Path, tmp_path: Path
) -> None:
    def config(name: str, **trainer: object) -> TrainConfig:
        return make_config(
            reference_server.url,
            model={"gradient_checkpointing": True},
            optimizer={"lr": 1e-2, "orthograd": {"enabled": True}},
            lora={"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"], "save_merged": True},
            trainer={"output": str(tmp_path / name), "checkpoint_every": 2, "save_model": True, **trainer},
        )

    train(config("whole"))
    train(config("halves", steps=2))
    train(config("halves"), resume=True)

    def learned(name: str) -> list[dict[str, float]]:
        records = read_records(tmp_path / name / "metrics.jsonl")
        return [{k: v for k, v in r.items() if "time/" not in k and k != "reference/latency_s"} for r in records]

    assert learned("halves") == learned("whole")
    assert learned("whole")[-1]["kl"] > 0

    saved = tmp_path / "whole" / "model"
    adapter = load_file(saved / "adapter_model.safetensors")
    assert all(
        torch.equal(adapter[k], v) for k, v in load_file(tmp_path / "halves/model/adapter_model.safetensors").items()
    )
    assert json.loads((saved / "adapter_config.json").read_text())["r"] == 4
    assert not (saved / "model.safetensors").exists()
    ids = torch.tensor([[5, 6, 7, 8]])
    base = AutoModelForCausalLM.from_pretrained(tiny_path)
    plain = base(ids).logits
    loaded = peft.PeftModel.from_pretrained(base, str(saved)).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "merged").eval()
    torch.testing.assert_close(merged(ids).logits, loaded(ids).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(ids).logits, plain, atol=1e-3)


def test_a_checkpoint_of_the_other_kind_is_refused(make_config: MakeConfig, reference_server) -> None:
    train(make_config(reference_server.url, trainer={"steps": 1, "checkpoint_every": 1}))
    with pytest.raises(CheckpointError, match="lora section"):
        train(make_config(reference_server.url, lora={}, trainer={"steps": 2, "checkpoint_every": 1}), resume=True)


def test_an_adapter_is_gone_on_with_beside_its_own_base(
    make_config: MakeConfig, reference_server, tiny_path: Path, tmp_path: Path
) -> None:
    """A checkpoint holds the adapter alone; beside other base weights it would be another policy."""
    base = tmp_path / "base"
    shutil.copytree(tiny_path, base)

    def config(steps: int) -> TrainConfig:
        trainer = {"steps": steps, "checkpoint_every": 1}
        return make_config(reference_server.url, model={"name": str(base)}, lora={"r": 2}, trainer=trainer)

    train(config(1))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[-1, -1] += 1e-3
    model.save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"the data has changed .*: model\.name"):
        train(config(2), resume=True)
    shutil.rmtree(base)
    shutil.copytree(tiny_path, base)
    assert train(config(2), resume=True)["steps"] == 2
