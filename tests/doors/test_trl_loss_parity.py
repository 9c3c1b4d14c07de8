"""grpo_training.losses against TRL's own GRPOTrainer._compute_loss: value and gradient over random batches and settings.

TRL's method runs as it is, on an object that has only the attributes it reads; its forward pass is replaced by given
log-probs, which are the leaves of the gradient.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grpo_training.config import LossConfig
from grpo_training.losses import Totals, group_advantages, policy_loss, rollout_correction
from grpo_training.losses.regularizers import entropy_bonus, high_entropy_mask
from torch import Tensor

trl = pytest.importorskip("trl", reason="the TRL losses are the oracle: needs the extra `trl`")

SEQUENCES, WIDTH, LIMIT, PORTIONS = 6, 9, 11, 3
CLIPPED = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"]


def batch(seed: int) -> dict[str, Tensor]:
    """Ragged rows, one of them empty; ratios on both sides of every clip; float64, so that 1e-6 is a matter of formula."""
    draw = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(SEQUENCES, WIDTH, generator=draw, dtype=torch.float64)

    logprobs = -2 + normal(0.7)
    lengths = torch.randint(1, WIDTH + 1, (SEQUENCES,), generator=draw)
    lengths[seed % SEQUENCES] = 0
    return {
        "logprobs": logprobs,
        "old": logprobs + normal(0.4),
        "ref": logprobs + normal(0.8),
        "sampler": logprobs + normal(0.4),
        "advantages": torch.randn(SEQUENCES, generator=draw, dtype=torch.float64),
        "mask": torch.arange(WIDTH) < lengths[:, None],
    }


def theirs(
    data: dict[str, Tensor], o: LossConfig, weights: Tensor | None, *, top: float = 1.0, coefficient: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Loss and gradient by log-prob, from TRL."""
    logprobs = data["logprobs"].clone().requires_grad_()
    entropies = logprobs**2  # any function of the leaves with a gradient of its own
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, **_: x,
        sync_gradients=True,
    )
    self = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, entropies, None),
        args=SimpleNamespace(
            delta=o.delta,
            use_bias_correction_kl=o.bias_corrected_kl,
            sapo_temperature_pos=o.sapo_temperature_pos,
            sapo_temperature_neg=o.sapo_temperature_neg,
            steps_per_generation=PORTIONS,
        ),
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        loss_type=o.kind,
        importance_sampling_level=o.ratio,
        beta=o.beta,
        epsilon_low=o.epsilon_low,
        epsilon_high=o.epsilon_high,
        max_completion_length=LIMIT,
        current_gradient_accumulation_steps=PORTIONS,
        top_entropy_quantile=top,
        off_policy_mask_threshold=None,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=coefficient > 0,
        use_adaptive_entropy=False,
        entropy_coef=coefficient,
        _metrics={"train": defaultdict(list)},
    )
    self.get_high_entropy_mask = lambda *a: trl.GRPOTrainer.get_high_entropy_mask(self, *a)
    ids = torch.zeros(SEQUENCES, WIDTH, dtype=torch.long)
    inputs: dict[str, Any] = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": data["mask"].double(),
        "advantages": data["advantages"],
        "old_per_token_logps": data["old"],
        "ref_per_token_logps": data["ref"],
        "num_items_in_batch": PORTIONS * data["mask"].sum() + 5,
        "importance_sampling_ratio": weights,
    }
    loss = trl.GRPOTrainer._compute_loss(self, None, inputs)
    loss.backward()
    assert logprobs.grad is not None
    return loss.detach(), logprobs.grad


def ours(data: dict[str, Tensor], o: LossConfig, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    logprobs = data["logprobs"].clone().requires_grad_()
    totals = Totals(SEQUENCES * PORTIONS, PORTIONS * int(data["mask"].sum()) + 5, PORTIONS, LIMIT)
    loss = policy_loss(
        logprobs,
        data["advantages"],
        data["mask"],
        o,
        totals,
        old_logprobs=data["old"],
        ref_logprobs=data["ref"],
        weights=weights,
    ).loss
    loss.backward()
    assert logprobs.grad is not None
    return loss.detach(), logprobs.grad


def settings() -> list[dict[str, Any]]:
    """Every loss with every ratio, with and without the KL, its correction, two-sided clipping and asymmetric clips."""
    table = []
    for kind, ratio, beta in itertools.product([*CLIPPED, "cispo", "sapo"], ["token", "sequence"], [0.0, 0.2]):
        base = {"kind": kind, "ratio": ratio, "beta": beta}
        table += [base, {**base, "epsilon_low": 0.1, "epsilon_high": 0.3}]
        table += [{**base, "delta": 1.3}] if kind in CLIPPED else []
        table += [{**base, "bias_corrected_kl": True}] if beta else []
    table += [{"kind": "cispo", "epsilon_high": 1.5, "beta": 0.1}]
    table += [{"kind": "sapo", "sapo_temperature_pos": 0.7, "sapo_temperature_neg": 2.0}]
    return table


@pytest.mark.parametrize("fields", settings(), ids=lambda f: "-".join(str(v) for v in f.values()))
def test_value_and_gradient(fields: dict[str, Any]) -> None:
    options = LossConfig.model_validate(fields)
    for seed in range(4):
        data = batch(seed)
        for weights in (None, rollout_correction(data["old"], data["sampler"], data["mask"])):
            (their_loss, their_grad), (our_loss, our_grad) = (
                theirs(data, options, weights),
                ours(data, options, weights),
            )
            torch.testing.assert_close(our_loss, their_loss, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(our_grad, their_grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [*CLIPPED, "cispo", "sapo"])
@pytest.mark.parametrize("top", [1.0, 0.3])
def test_entropy_bonus_and_mask(kind: str, top: float) -> None:
    options = LossConfig.model_validate({"kind": kind, "beta": 0.1})
    for seed in range(4):
        data = batch(seed)
        logprobs = data["logprobs"].clone().requires_grad_()
        chosen = high_entropy_mask(logprobs**2, data["mask"], top)
        totals = Totals(SEQUENCES * PORTIONS, PORTIONS * int(data["mask"].sum()) + 5, PORTIONS, LIMIT)
        terms = policy_loss(
            logprobs,
            data["advantages"],
            data["mask"],
            options,
            totals,
            old_logprobs=data["old"],
            ref_logprobs=data["ref"],
            weights=chosen,
        )
        loss = terms.loss - 0.05 * entropy_bonus(logprobs**2, chosen, portions=PORTIONS)
        loss.backward()
        their_loss, their_grad = theirs(data, options, None, top=top, coefficient=0.05)
        torch.testing.assert_close(loss.detach(), their_loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(logprobs.grad, their_grad, rtol=1e-6, atol=1e-6)


def test_the_comparison_can_fail() -> None:
    data, options = batch(0), LossConfig(kind="grpo")
    moved = options.model_copy(update={"epsilon_low": 0.9, "epsilon_high": 9.0})
    assert not torch.allclose(ours(data, moved, None)[1], theirs(data, options, None)[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(scale: str) -> None:
    """TRL's are a few lines in the midst of its generation step, so they are written out here as they stand there."""
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(0))
    rewards[:4] = 0.5
    groups = rewards.view(-1, 4)
    expected = rewards - groups.mean(1).repeat_interleave(4)
    if scale == "group":
        expected = expected / (groups.std(1).repeat_interleave(4) + 1e-4)
    if scale == "batch":
        expected = expected / (rewards.std() + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, 4, scale=scale), expected, rtol=1e-6, atol=1e-6)
