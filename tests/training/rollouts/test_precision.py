"""bf16 products: log-probs stay float32 and no further from the truth than the model's own under autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from grpo_training.config import TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run.loop import train
from torch import Tensor
from transformers import LlamaForCausalLM


def naive(model: LlamaForCausalLM, data: Rollout) -> Tensor:
    """One row at a time, under autocast, logits and all."""
    out = []
    for i, group in enumerate(data.completions()):
        for completion in group:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(torch.tensor([data.prompts[i] + completion])).logits[0, len(data.prompts[i]) - 1 : -1]
            out.append(logits.float().log_softmax(-1)[torch.arange(len(completion)), completion])
    return torch.cat(out)


def gradient(model: LlamaForCausalLM) -> Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts)


@pytest.mark.parametrize("way", ["packed", "plain"])
def test_error_is_that_of_the_products(tiny: LlamaForCausalLM, ragged: Rollout, way: str) -> None:
    model, data = copy.deepcopy(tiny), ragged
    exact = Policy(model).logprobs(data)[data.mask]
    exact.sum().backward()
    true_gradient = gradient(model)
    policy = Policy(model, precision="bf16")
    policy.way = way  # type: ignore[assignment]
    ours = policy.logprobs(data)[data.mask]
    ours.sum().backward()
    theirs = naive(model, data)
    our_gradient = gradient(model)
    theirs.sum().backward()
    their_gradient = gradient(model)
    assert ours.dtype == our_gradient.dtype == torch.float32
    assert not torch.equal(ours, exact)
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm()
    assert (our_gradient - true_gradient).norm() <= 2 * (their_gradient - true_gradient).norm()


@pytest.mark.parametrize("model", [{"precision": "bf16", "gradient_checkpointing": True}, {"dtype": "bfloat16"}])
def test_runs_in_bf16(make_config: Callable[..., TrainConfig], reference_server, model: dict[str, object]) -> None:
    config = make_config(reference_server.url, model=model, trainer={"steps": 2})
    train(config)
    records = read_records(config.trainer.output / "metrics.jsonl")
    assert all(r["policy/skipped"] == 0 and r["policy/sampler_gap"] < 1 for r in records)
