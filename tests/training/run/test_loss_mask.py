"""Tokens that the policy did not write are context: they are not scored, not trained on, and in no average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client import ScoreRequest, ScoreResult
from grpo_training.config import TrainConfig
from grpo_training.losses.objective import PortionData, portion_loss
from grpo_training.report.metrics import read_records
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.sampling import PolicySampler
from grpo_training.run import update
from grpo_training.run.loop import train
from transformers import LlamaForCausalLM

MakeConfig = Callable[..., TrainConfig]


def every_third_is_a_tools(rollout: Rollout) -> Rollout:
    """Columns 1 and 4 of every completion were put there by somebody else."""
    by_policy = torch.arange(rollout.mask.shape[1]).expand_as(rollout.mask) % 3 != 1
    assert rollout.entropy is not None
    return replace(
        rollout,
        by_policy=by_policy,
        logprobs=rollout.logprobs.where(by_policy, 0.0),
        entropy=rollout.entropy.where(by_policy, 0.0),
    )


@pytest.mark.parametrize("way", ["packed", "plain", "alone"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_head_sees_only_what_the_policy_wrote(
    tiny: LlamaForCausalLM, ragged: Rollout, way: Any, fused: bool
) -> None:
    policy = Policy(tiny)
    policy.way, policy.fused = way, fused
    masked = every_third_is_a_tools(ragged)
    assert masked.lengths.tolist() == ragged.lengths.tolist()
    assert masked.completions() == ragged.completions()
    written = masked.loss_mask
    assert int(written.sum()) < int(ragged.mask.sum())
    ours, entropies = policy.scores(masked, entropies=True)
    everyones, all_entropies = policy.scores(ragged, entropies=True)
    assert entropies is not None
    assert all_entropies is not None
    # The same hidden states through a product of fewer rows: fp32 rounding of sums over 32 terms.
    torch.testing.assert_close(ours, everyones.where(written, 0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, all_entropies.where(written, 0.0), atol=1e-5, rtol=0)
    assert not ours[~written].any()
    weights = torch.rand(ours.shape, generator=torch.Generator().manual_seed(1))
    [mine] = torch.autograd.grad((ours * weights).sum(), [tiny.model.layers[0].mlp.up_proj.weight])
    [theirs] = torch.autograd.grad((everyones * weights * written).sum(), [tiny.model.layers[0].mlp.up_proj.weight])
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_the_mask_goes_with_its_portion(ragged: Rollout) -> None:
    masked = every_third_is_a_tools(ragged)
    first, second = masked.portions(2)
    assert torch.equal(torch.cat([first.loss_mask, second.loss_mask]), masked.loss_mask)


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_what_the_reference_says_of_a_tools_tokens_is_without_effect(
    make_config: MakeConfig,
    reference_server: Any,
    varied_task: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    kl_in: str,
) -> None:
    honest, sampled = PolicySampler.sample, []
    seen: list[PortionData] = []

    def sample(self: Any, *args: Any, **more: Any) -> Rollout:
        sampled.append(every_third_is_a_tools(honest(self, *args, **more)))
        return sampled[-1]

    def recording(data: PortionData, *args: Any, **more: Any) -> Any:
        seen.append(data)
        return portion_loss(data, *args, **more)

    monkeypatch.setattr(PolicySampler, "sample", sample)
    monkeypatch.setattr(update, "portion_loss", recording)
    told = reference_server.score

    def nonsense(request: ScoreRequest) -> ScoreResult:
        result = told(request)
        lengths = [len(c) for group in request.groups for c in group.completions]
        tools = np.concatenate([np.arange(n) % 3 == 1 for n in lengths])
        return replace(result, logprobs=np.where(tools, np.float32(-50.0), result.logprobs))

    runs: list[list[dict[str, Any]]] = []
    for name, score in (("honest", told), ("nonsense", nonsense)):
        reference_server.score = score
        config = make_config(
            reference_server.url,
            task=varied_task,
            loss={"kl_in": kl_in, "kind": "dapo"},
            trainer={"steps": 2, "gradient_accumulation": 2, "output": str(tmp_path / name)},
        )
        train(config)
        records = read_records(config.trainer.output / "metrics.jsonl")
        runs.append([{k: v for k, v in r.items() if not k.startswith(("time/", "reference/"))} for r in records])
    assert runs[0] == runs[1]
    for data in seen:
        hidden = ~data.mask
        assert data.reference is not None
        assert not any(values[hidden].any() for values in (data.logprobs, data.old, data.sampler, data.reference))
    first = runs[0][0]
    assert first["completion/tokens"] == int(sampled[0].mask.sum())
    entropy = float(sampled[0].entropy.double().sum() / sampled[0].loss_mask.sum())
    assert first["policy/entropy"] == pytest.approx(entropy, rel=1e-6)
    assert first["policy/sampler_gap"] < 1e-4
