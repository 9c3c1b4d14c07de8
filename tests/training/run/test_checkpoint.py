"""Checkpoints: what goes in comes out, half-written ones do not count, and those of another model are refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from grpo_training.config import CheckpointError
from grpo_training.run.checkpoint import Checkpoints, TrainerState, load_checkpoint
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

STATE = TrainerState(step=3, fingerprint="abc", config={"trainer": {"seed": 1}})


@pytest.fixture
def trained(tiny: LlamaForCausalLM) -> LlamaForCausalLM:
    return copy.deepcopy(tiny)


def optimizer_of(model: LlamaForCausalLM) -> AdamW:
    return AdamW([{"params": list(model.parameters()), "orthograd": False}], lr=0.01, betas=(0.8, 0.9), amsgrad=True)


def one_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()


def test_round_trip(trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    optimizer = optimizer_of(trained)
    scheduler = LambdaLR(optimizer, lambda n: 1 / (n + 1))
    one_step(trained, optimizer)
    scheduler.step()
    path = Checkpoints(tmp_path).save(STATE, trained, tokenizer, optimizer.state_dict(), scheduler.state_dict())
    assert not [f for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pkl")]

    fresh = LlamaForCausalLM(trained.config)
    again = optimizer_of(fresh)
    rate = LambdaLR(again, lambda n: 1 / (n + 1))
    assert load_checkpoint(path, fresh, again, rate) == STATE
    assert rate.get_last_lr() == scheduler.get_last_lr()
    assert again.param_groups[0]["betas"] == (0.8, 0.9)
    assert again.param_groups[0]["orthograd"] is False
    one_step(trained, optimizer)
    one_step(fresh, again)
    for ours, theirs in zip(fresh.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # Any tool can load it: it is a model in Hugging Face's own format.
    assert isinstance(AutoModelForCausalLM.from_pretrained(path), LlamaForCausalLM)


def test_only_whole_checkpoints_count_and_old_ones_go(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest() is None
    optimizer = SGD(trained.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda _: 1.0)
    for step in (1, 2, 3):
        state = TrainerState(step, None, {})
        checkpoints.save(state, trained, tokenizer, optimizer.state_dict(), scheduler.state_dict())
    (tmp_path / "checkpoints" / "step-000009.partial").mkdir()
    assert [p.name for p in checkpoints.all()] == ["step-000002", "step-000003"]
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.name == "step-000003"


def test_what_cannot_be_used_is_refused(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    optimizer = SGD(trained.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda _: 1.0)
    path = Checkpoints(tmp_path).save(STATE, trained, tokenizer, optimizer.state_dict(), scheduler.state_dict())
    deeper = copy.deepcopy(trained.config)
    deeper.num_hidden_layers = 3
    with pytest.raises(CheckpointError, match="another model"):
        load_checkpoint(path, LlamaForCausalLM(deeper), optimizer, scheduler)
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(path, trained, optimizer, scheduler)


def test_what_only_pickle_could_hold_is_refused(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=r"optimizer\.state is a object"):
        Checkpoints(tmp_path).save(STATE, trained, tokenizer, {"state": object()}, {})
    assert Checkpoints(tmp_path).latest() is None
