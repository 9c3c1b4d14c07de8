"""The objective as configured, against the same written out token by token, and that each setting reaches only its own part."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from grpo_training.config import Correction, LossConfig
from grpo_training.losses import Totals, group_advantages, mean_metrics
from grpo_training.losses.objective import PortionData, correction_in_use, needs_entropies, penalised, portion_loss
from torch import Tensor

LENGTHS = [5, 1, 3, 5, 2]
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
TOTALS = Totals(sequences=5, tokens=sum(LENGTHS), portions=1, max_tokens=7)


def portion(seed: int = 0) -> PortionData:
    draw = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(MASK.shape, generator=draw, dtype=torch.float64)

    logprobs = -2 + normal(0.5)
    return PortionData(
        logprobs=logprobs.requires_grad_(),
        entropies=normal(1.0).abs().requires_grad_(),
        old=(logprobs + normal(0.2)).detach(),
        sampler=(logprobs + normal(0.8)).detach(),
        reference=(logprobs + normal(0.6)).detach(),
        mask=MASK,
        advantages=torch.randn(5, generator=draw, dtype=torch.float64),
    )


def weight_by_hand(data: PortionData, how: Correction, cap: float, s: int, t: int) -> float:
    if how == "none":
        return 1.0
    places = range(LENGTHS[s]) if how.startswith("sequence") else [t]
    ratio = math.exp(sum(float(data.old[s, i] - data.sampler[s, i]) for i in places))
    return min(ratio, cap) if how.endswith("truncate") else ratio * (ratio <= cap)


def by_hand(data: PortionData, o: LossConfig, how: Correction) -> float:
    """kind=dapo: a mean over all tokens, so that a token's share is plain to see."""
    assert data.entropies is not None
    assert data.reference is not None
    inside = sorted(float(data.entropies.detach()[s, t]) for s, n in enumerate(LENGTHS) for t in range(n))
    place = (1 - o.top_entropy_quantile) * (len(inside) - 1)  # torch.quantile: linear between neighbours
    low = math.floor(place)
    threshold = inside[low] + (place - low) * (inside[min(low + 1, len(inside) - 1)] - inside[low])
    total, bonus = 0.0, []
    for s, n in enumerate(LENGTHS):
        for t in range(n):
            logp, old, ref, h = (
                float(x.detach()[s, t]) for x in (data.logprobs, data.old, data.reference, data.entropies)
            )
            ratio, advantage = math.exp(logp - old), float(data.advantages[s])
            term = -min(ratio * advantage, min(max(ratio, 1 - o.epsilon_low), 1 + o.epsilon_high) * advantage)
            if h >= threshold:
                total += term * weight_by_hand(data, how, o.rollout_correction_cap, s, t)
                bonus.append(h)
            if o.kl_in == "loss":
                total += o.beta * (math.exp(ref - logp) - (ref - logp) - 1)
    return total / sum(LENGTHS) - o.entropy_coef * sum(bonus) / len(bonus)


@pytest.mark.parametrize(
    "correction", ["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"], ids=str
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"entropy_coef": 0.3},
        {"top_entropy_quantile": 0.4},
        {"top_entropy_quantile": 0.4, "entropy_coef": 0.3},
        {"kl_in": "reward"},
        {"rollout_correction_cap": 1.1},
    ],
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_value(fields: dict[str, Any], correction: Correction) -> None:
    options = LossConfig.model_validate({"kind": "dapo", "beta": 0.2, **fields})
    for seed in range(3):
        data = portion(seed)
        loss = portion_loss(data, options, TOTALS, correction=correction).loss.detach()
        # 16 terms in fp64, but torch.quantile sets the threshold in the entropies' own precision, which is the same.
        assert float(loss) == pytest.approx(by_hand(data, options, correction), rel=1e-12, abs=1e-12)


def gradients(data: PortionData, options: LossConfig, correction: Correction = "none") -> tuple[Tensor, Tensor]:
    assert data.entropies is not None
    portion_loss(data, options, TOTALS, correction=correction).loss.backward()
    bonus = data.entropies.grad
    assert data.logprobs.grad is not None
    return data.logprobs.grad, torch.zeros_like(MASK, dtype=torch.float64) if bonus is None else bonus


def test_the_bonus_raises_entropy_and_nothing_else() -> None:
    plain = LossConfig(kind="dapo", beta=0.2)
    logp, none = gradients(portion(), plain)
    same, bonus = gradients(portion(), plain.model_copy(update={"entropy_coef": 0.3}))
    assert torch.equal(logp, same)
    assert not none.any()
    torch.testing.assert_close(bonus, -0.3 * MASK.double() / sum(LENGTHS))


def test_the_entropy_mask_silences_the_policy_term_and_not_the_kl() -> None:
    options = LossConfig(kind="dapo", beta=0.2, top_entropy_quantile=0.4)
    data = portion()
    assert data.entropies is not None
    masked, _ = gradients(data, options)
    kl_alone, _ = gradients(replace(portion(), advantages=torch.zeros(5, dtype=torch.float64)), options)
    threshold = torch.quantile(data.entropies[MASK], 0.6)
    quiet = MASK & (data.entropies < threshold)
    assert quiet.sum() == 9  # of 16
    torch.testing.assert_close(masked[quiet], kl_alone[quiet])
    assert not torch.allclose(masked[MASK & ~quiet], kl_alone[MASK & ~quiet])


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k3+"])
def test_the_kl_in_the_reward(kind: Any) -> None:
    options = LossConfig(beta=0.1, kl=kind, kl_in="reward")
    data, rewards = portion(), torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    assert data.reference is not None
    hidden = data.reference.masked_fill(~MASK, math.nan)
    earned, mean = penalised(rewards, data.old, hidden, MASK, options)
    d = data.reference - data.old
    token = {"k1": -d, "k2": d**2 / 2, "k3": d.exp() - d - 1, "k3+": d.exp() - d - 1}[kind] * MASK
    torch.testing.assert_close(earned, rewards - 0.1 * token.sum(-1))
    assert mean == pytest.approx(float(token.sum() / sum(LENGTHS)), rel=1e-12)
    # It reaches the loss through the advantage, and there is no KL beside it.
    assert "kl" not in portion_loss(data, options, TOTALS, correction="none").sums
    assert "kl" in portion_loss(data, LossConfig(beta=0.1, kl=kind), TOTALS, correction="none").sums
    assert not torch.allclose(group_advantages(earned, 5), group_advantages(rewards, 5))


def test_the_figures_are_token_means() -> None:
    data = portion()
    assert data.entropies is not None
    options = LossConfig(kind="dapo", top_entropy_quantile=0.4)
    figures = mean_metrics([portion_loss(data, options, TOTALS, correction="token_mask")])
    weights = torch.tensor(
        [weight_by_hand(data, "token_mask", 3.0, s, t) for s, n in enumerate(LENGTHS) for t in range(n)]
    )
    assert figures["rollout/weight"] == pytest.approx(float(weights.mean()), rel=1e-6)
    assert figures["rollout/left_out"] == pytest.approx(float((weights == 0).double().mean()))
    assert figures["policy/trained_share"] == pytest.approx(7 / 16)
    assert figures["policy/entropy"] == pytest.approx(float(data.entropies.detach()[MASK].mean()))


def test_auto_corrects_what_another_engine_sampled() -> None:
    assert correction_in_use(LossConfig(), foreign=False) == "none"
    assert correction_in_use(LossConfig(), foreign=True) == "sequence_mask"
    assert correction_in_use(LossConfig(rollout_correction="token_truncate"), foreign=False) == "token_truncate"


def test_entropies_are_computed_only_where_they_are_used() -> None:
    assert not needs_entropies(LossConfig())
    assert needs_entropies(LossConfig(entropy_coef=0.1))
    assert needs_entropies(LossConfig(top_entropy_quantile=0.9))


def test_two_processes_have_one_threshold_and_one_mean_entropy() -> None:
    """Cut by rows, each told what the other has: their losses and gradients add up to those of one process."""
    options = LossConfig(kind="dapo", beta=0.2, top_entropy_quantile=0.4, entropy_coef=0.3)
    whole = portion_loss(portion(), options, TOTALS, correction="none")
    data = portion()
    assert data.entropies is not None

    def part(rows: slice) -> PortionData:
        cut = {
            name: value[rows].detach() if isinstance(value := getattr(data, name), Tensor) else value
            for name in ("logprobs", "entropies", "old", "sampler", "reference", "mask", "advantages")
        }
        return PortionData(**cut)

    def everyones(values: Tensor) -> Tensor:
        """The entropies of all where they are asked for, and of counts the sum so far."""
        if values.is_floating_point():
            assert data.entropies is not None
            return data.entropies.detach()[MASK]
        return torch.tensor([7])

    losses = [
        portion_loss(part(rows), options, TOTALS, correction="none", everyones=everyones)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    assert float(whole.sums["policy/trained_share"]) == 7
    assert sum(float(p.sums["policy/trained_share"]) for p in losses) == 7
    assert sum(float(p.loss) for p in losses) == pytest.approx(float(whole.loss.detach()), rel=1e-12)


def test_a_mask_of_integers() -> None:
    options = LossConfig(kind="dapo", beta=0.2, top_entropy_quantile=0.4, entropy_coef=0.3)
    expected = portion_loss(portion(), options, TOTALS, correction="token_mask")
    found = portion_loss(replace(portion(), mask=MASK.long()), options, TOTALS, correction="token_mask")
    assert torch.equal(found.loss, expected.loss)
    assert mean_metrics([found]) == mean_metrics([expected])
