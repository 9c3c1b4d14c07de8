"""The losses against the formulas written out token by token in float64, and the traps of masks and empty rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from grpo_training.config import LossConfig
from grpo_training.losses import (
    LossTerms,
    Totals,
    group_advantages,
    importance_ratio,
    mean_metrics,
    policy_loss,
    rollout_correction,
)
from torch import Tensor

KINDS = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"]
LENGTHS = [5, 1, 0, 3, 5, 2]
LIMIT = 7  # longest completion allowed; dr_grpo divides by it


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Six rows of up to five tokens, one of them empty; ratios far enough from 1 to be clipped on both sides."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS))

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(shape, generator=draw, dtype=torch.float64)

    logprobs = -2 + normal(0.5)
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + normal(0.4),
        "ref_logprobs": logprobs + normal(0.6),
        "advantages": torch.randn(len(LENGTHS), generator=draw, dtype=torch.float64),
        "mask": torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None],
    }


def totals(data: dict[str, Tensor], portions: int = 1) -> Totals:
    return Totals(len(data["mask"]), int(data["mask"].sum()), portions, LIMIT)


def loss_of(data: dict[str, Tensor], options: LossConfig, whole: Totals | None = None) -> LossTerms:
    data = dict(data)
    return policy_loss(
        data.pop("logprobs"), data.pop("advantages"), data.pop("mask"), options, whole or totals(data_all(data)), **data
    )


def data_all(data: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"mask": torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None], **data}


def by_hand(data: dict[str, Tensor], o: LossConfig) -> float:
    """The objective with Python's own floats, one token at a time."""
    rows: list[list[float]] = []
    for s, length in enumerate(LENGTHS):
        logp, old, ref = (data[k][s, :length].tolist() for k in ("logprobs", "old_logprobs", "ref_logprobs"))
        advantage = float(data["advantages"][s])
        ratios = [math.exp(a - b) for a, b in zip(logp, old, strict=True)]
        if o.ratio == "sequence" and length:
            ratios = [math.exp(sum(a - b for a, b in zip(logp, old, strict=True)) / length)] * length
        row: list[float] = []
        for t in range(length):
            r = ratios[t]
            if o.kind == "cispo":
                term = -min(r, o.epsilon_high) * advantage * logp[t]
            elif o.kind == "sapo":
                tau = o.sapo_temperature_pos if advantage > 0 else o.sapo_temperature_neg
                term = -4 / tau / (1 + math.exp(-tau * (r - 1))) * advantage
            else:
                clipped = min(max(r, 1 - o.epsilon_low), 1 + o.epsilon_high)
                bounded = min(r, o.delta) if o.delta is not None else r
                term = -min(bounded * advantage, clipped * advantage)
            d = ref[t] - logp[t]
            kl = {"k1": -d, "k2": d * d / 2, "k3": math.expm1(d) - d, "abs": abs(d)}[o.kl]
            row.append(term + o.beta * kl * (r if o.bias_corrected_kl else 1.0))
        rows.append(row)
    everything = [x for row in rows for x in row]
    if o.kind in ("grpo", "sapo"):
        return sum(sum(row) / max(len(row), 1) for row in rows) / len(rows)
    if o.kind == "luspo":
        return sum(everything) / len(rows)
    if o.kind == "dr_grpo":
        return sum(everything) / (len(rows) * LIMIT)
    return sum(everything) / len(everything)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"beta": 0.0},
        {"beta": 0.3, "kl": "k1"},
        {"beta": 0.3, "kl": "k2", "bias_corrected_kl": True},
        {"epsilon_low": 0.05, "epsilon_high": 0.4, "delta": 1.2},
        {"ratio": "sequence", "beta": 0.1, "kl": "abs"},
    ],
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_value(kind: str, fields: dict[str, Any]) -> None:
    options = LossConfig.model_validate({"kind": kind, **fields})
    for seed in range(3):
        data = batch(seed)
        assert float(loss_of(data, options).loss) == pytest.approx(by_hand(data, options), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{"beta": 0.2}, {"beta": 0.2, "ratio": "sequence", "bias_corrected_kl": True}])
def test_gradient(kind: str, fields: dict[str, Any]) -> None:
    """Against central differences of the formula; cispo's ratio is a constant to the gradient, so it is left out there."""
    options = LossConfig.model_validate({"kind": kind, **fields})
    data = batch(1)
    data["logprobs"].requires_grad_()
    loss_of(data, options).loss.backward()
    grad = data["logprobs"].grad
    assert grad is not None
    if kind == "cispo":
        ratio = importance_ratio(data["logprobs"].detach(), data["old_logprobs"], data["mask"], level=options.ratio)
        policy_part = -ratio.clamp(max=options.epsilon_high) * data["advantages"][:, None] * data["mask"]
        without_kl = LossConfig.model_validate({"kind": kind, **fields, "beta": 0.0})
        data["logprobs"].grad = None
        loss_of(data, without_kl).loss.backward()
        torch.testing.assert_close(data["logprobs"].grad, policy_part / data["mask"].sum())
        return
    step = 1e-6
    for s, t in [(0, 0), (0, 4), (1, 0), (3, 2), (4, 1)]:
        up, down = ({k: v.detach().clone() for k, v in data.items()} for _ in range(2))
        up["logprobs"][s, t] += step
        down["logprobs"][s, t] -= step
        numeric = (by_hand(up, options) - by_hand(down, options)) / (2 * step)
        # Central differences: rounding of the value over the step, 1e-16 / 1e-6, with room for the curvature.
        assert float(grad[s, t]) == pytest.approx(numeric, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mask_hides_reaches_nothing(kind: str) -> None:
    options = LossConfig.model_validate({"kind": kind, "beta": 0.1})
    clean, dirty = batch(), batch()
    for name in ("logprobs", "old_logprobs", "ref_logprobs"):
        dirty[name] = dirty[name].masked_fill(~dirty["mask"], math.nan)
    for data in (clean, dirty):
        data["logprobs"] = data["logprobs"].clone().requires_grad_()
    a, b = loss_of(clean, options), loss_of(dirty, options)
    a.loss.backward()
    b.loss.backward()
    assert torch.equal(a.loss, b.loss)
    assert clean["logprobs"].grad is not None
    assert dirty["logprobs"].grad is not None
    assert torch.equal(clean["logprobs"].grad, dirty["logprobs"].grad)
    assert mean_metrics([a]) == mean_metrics([b])


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "bnpo"])  # bnpo averages within a portion, by definition
def test_portions_add_up(kind: str) -> None:
    options = LossConfig.model_validate({"kind": kind, "beta": 0.1})
    data = batch()
    whole = loss_of(data, options, totals(data))
    parts = [loss_of({k: v[i : i + 2] for k, v in data.items()}, options, totals(data, 3)) for i in (0, 2, 4)]
    assert sum(float(p.loss) for p in parts) == pytest.approx(float(whole.loss), rel=1e-12)
    together, once = mean_metrics(parts), mean_metrics([whole])
    assert together == pytest.approx(once, rel=1e-12)


def test_without_old_logprobs_the_ratio_is_one() -> None:
    data = batch()
    del data["old_logprobs"]
    data["logprobs"].requires_grad_()
    terms = loss_of(data, LossConfig(beta=0.0, kind="dapo"))
    assert float(terms.sums["ratio"]) == float(terms.tokens)
    terms.loss.backward()
    expected = -data["advantages"][:, None] * data["mask"] / data["mask"].sum()
    torch.testing.assert_close(data["logprobs"].grad, expected)


def test_beta_needs_a_reference() -> None:
    data = batch()
    del data["ref_logprobs"]
    with pytest.raises(ValueError, match="ref_logprobs"):
        loss_of(data, LossConfig(beta=0.1))


def test_clip_shares_are_counted() -> None:
    data = batch()
    ratio = (data["logprobs"] - data["old_logprobs"]).exp()
    positive = data["advantages"][:, None] > 0
    high = ((ratio > 1.2) & positive & data["mask"]).sum() / data["mask"].sum()
    low = ((ratio < 0.8) & ~positive & data["mask"]).sum() / data["mask"].sum()
    figures = mean_metrics([loss_of(data, LossConfig())])
    assert figures["clip_high"] == pytest.approx(float(high))
    assert high > 0
    assert figures["clip_low"] == pytest.approx(float(low))
    assert low > 0


def test_group_advantages() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5])
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0])
    deviation = math.sqrt(4 * 0.25 / 3)  # unbiased, as torch's and TRL's
    torch.testing.assert_close(group_advantages(rewards, 4), centred / (deviation + 1e-4))
    torch.testing.assert_close(group_advantages(rewards, 4, scale="none"), centred)
    torch.testing.assert_close(group_advantages(rewards, 4, scale="batch"), centred / (rewards.std() + 1e-4))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rollout_correction(level: Any) -> None:
    policy = torch.tensor([[-1.0, -1.0, -9.0], [-1.0, -2.0, -1.0]])
    sampler = torch.tensor([[-3.0, -1.5, 5.0], [-1.0, math.nan, -1.5]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ratio = torch.tensor([[2.0, 0.5, 0.0], [0.0, 0.0, 0.5]]).exp()
    if level == "sequence":
        ratio = torch.tensor([[2.5], [0.5]]).exp()
    cut = rollout_correction(policy, sampler, mask, level=level, how="truncate", cap=3.0)
    torch.testing.assert_close(cut, ratio.clamp(max=3.0))
    left_out = rollout_correction(policy, sampler, mask, level=level, how="mask", cap=3.0)
    torch.testing.assert_close(left_out, torch.where(ratio > 3.0, 0.0, ratio))
