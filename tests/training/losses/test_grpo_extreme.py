"""The losses far outside of what a healthy run sees: huge ratios, infinities, equal rewards, dirt under the mask."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from grpo_training.config import LossConfig
from grpo_training.losses import LossTerms, Totals, importance_ratio, mean_metrics, policy_loss, rollout_correction
from grpo_training.losses.advantages import group_advantages
from torch import Tensor

KINDS = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ONE = Totals(sequences=1, tokens=1, portions=1, max_tokens=1)  # one token: every kind's average is that token
# Log-ratios. All are exact on bf16's grid.
RATIOS = [0.0, 0.125, 0.25, 1.0, 10.0, 11.0, 12.0, 20.0, 80.0, 88.0, 89.0, 100.0, 300.0, 1000.0, 9984.0, math.inf]
LOGP = -1.0


def exact(x: float, advantage: float, o: LossConfig) -> tuple[float, float]:
    """Value and derivative by log-prob of the term of a token whose log-ratio is x, in Python's floats."""
    r = math.exp(min(x, 354.0))
    if o.kind == "cispo":
        weight = -min(r, o.epsilon_high) * advantage
        return weight * LOGP, weight
    if o.kind == "sapo":
        tau = o.sapo_temperature_pos if advantage > 0 else o.sapo_temperature_neg
        s = 1 / (1 + math.exp(-min(tau * (r - 1), 700.0)))
        return -4 / tau * s * advantage, -4 * s * (1 - s) * r * advantage if r < 1e100 else 0.0
    clipped = min(max(r, 1 - o.epsilon_low), 1 + o.epsilon_high)
    bounded = r if o.delta is None else min(r, o.delta)
    if bounded * advantage < clipped * advantage or clipped == r:
        return -bounded * advantage, -r * advantage if bounded == r and x < 354 else 0.0
    return -clipped * advantage, 0.0


def one_token(x: float, advantage: float, o: LossConfig, dtype: torch.dtype, **more: Any) -> tuple[float, float]:
    logp = torch.full((1, 1), LOGP, dtype=dtype, requires_grad=True)
    if more.pop("policy_moved", False):  # an infinite ratio may come from either side
        logp = torch.full((1, 1), x, dtype=dtype, requires_grad=True)
        old = torch.full((1, 1), 0.0, dtype=dtype)
    else:
        old = torch.full((1, 1), LOGP - x, dtype=dtype)
    terms = policy_loss(
        logp, torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool), o, ONE, old_logprobs=old, **more
    )
    (slope,) = torch.autograd.grad(terms.loss, logp)
    assert not any(math.isnan(float(v)) for v in terms.sums.values())
    return float(terms.loss.detach()), float(slope)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("advantage", [0.0, 1.5, -1.5])
@pytest.mark.parametrize("fields", [{}, {"ratio": "sequence"}, {"delta": 3.0}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_ratio(kind: str, fields: dict[str, Any], advantage: float, dtype: torch.dtype) -> None:
    options = LossConfig.model_validate({"kind": kind, "beta": 0.0, **fields})
    computed = torch.float64 if dtype is torch.float64 else torch.float32
    for x in [sign * x for x in RATIOS for sign in (1, -1)]:
        # What is subtracted is rounded first.
        there = LOGP - float(torch.tensor(LOGP - x, dtype=dtype))
        value, slope = one_token(x, advantage, options, dtype)
        wanted, wanted_slope = exact(there, advantage, options)
        largest = torch.finfo(dtype).max
        eps = torch.finfo(computed).eps
        if abs(wanted) > torch.finfo(computed).max:
            wanted = math.copysign(math.inf, wanted)
        # The term is computed in fp64 and rounded once; its exponential carries the error of e^354's argument.
        relative = max(eps, 400 * torch.finfo(torch.float64).eps)
        assert value == pytest.approx(wanted, rel=relative, abs=torch.finfo(computed).smallest_normal * eps), x
        # The last figure of the dtype's smallest numbers; sapo's slope s (1 - s) r cancels, and errs by eps64 r.
        wanted_slope = max(-largest, min(largest, wanted_slope))
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps + 1e-14
        assert slope == pytest.approx(wanted_slope, rel=relative + torch.finfo(dtype).eps, abs=smallest), x
        if wanted_slope == 0:
            assert slope == 0.0, x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias_corrected", [False, True])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "k3+", "abs"])
def test_no_nan_with_the_kl_beside(kind: str, bias_corrected: bool, kl: str) -> None:
    fields = {"kind": kind, "beta": 0.1, "kl": kl, "bias_corrected_kl": bias_corrected, "epsilon_high": 1.5}
    options = LossConfig.model_validate(fields)
    for dtype in DTYPES:
        for x in [sign * x for x in RATIOS for sign in (1, -1)]:
            for advantage in (0.0, 1.5, -1.5):
                for reference in (LOGP, -20.0, -1e4, 0.0):
                    ref = torch.full((1, 1), reference, dtype=dtype)
                    value, slope = one_token(x, advantage, options, dtype, ref_logprobs=ref)
                    assert not math.isnan(value), (dtype, x, advantage, reference)
                    assert math.isfinite(slope), (dtype, x, advantage, reference)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_the_policy_has_given_up(kind: str) -> None:
    """log-prob -inf, ratio 0: the term's limit, with weights and without, and no gradient where the clip binds."""
    for advantage, weights in ((0.0, None), (1.5, None), (-1.5, None), (-1.5, torch.zeros(1, 1))):
        options = LossConfig.model_validate({"kind": kind, "beta": 0.0})
        value, slope = one_token(-math.inf, advantage, options, torch.float32, policy_moved=True, weights=weights)
        assert math.isfinite(value)
        assert slope == 0.0 or kind == "cispo"


def test_a_huge_ratio_in_a_row_of_ordinary_ones() -> None:
    """The row's other tokens keep their value and gradient; an unclipped one is as large as it is, not NaN."""
    logp = torch.full((2, 3), -1.0, requires_grad=True)
    old = torch.tensor([[-1.0, -100.0, -1.1], [-1.0, -100.0, -0.9]])
    advantages = torch.tensor([1.0, -1.0])
    mask = torch.ones(2, 3, dtype=torch.bool)
    totals = Totals(2, 6, 1, 3)
    terms = policy_loss(logp, advantages, mask, LossConfig(kind="dapo", beta=0.0), totals, old_logprobs=old)
    (grad,) = torch.autograd.grad(terms.loss, logp)
    assert float(terms.loss.detach()) == math.inf  # e^99 / 6 is 1.6e42
    assert grad[1, 1] == torch.finfo(torch.float32).max
    small = torch.tensor([[1.0, 0.0, math.exp(0.1)], [-1.0, 0.0, -math.exp(-0.1)]]) / -6
    torch.testing.assert_close(grad.index_fill(1, torch.tensor([1]), 0.0), small)
    assert grad[0, 1] == 0


def test_importance_ratio_is_the_exponential_as_far_as_the_dtype_goes() -> None:
    for dtype, ends in ((torch.float32, 88.0), (torch.float64, 350.0)):
        x = torch.tensor([[-1000.0, -1.0, 0.0, 80.0, ends, 1e4, math.inf]], dtype=dtype)
        mask = torch.ones(1, 7, dtype=torch.bool)
        r = importance_ratio(x, torch.zeros_like(x), mask)
        torch.testing.assert_close(
            r[0, :5], x[0, :5].double().exp().to(dtype), rtol=400 * torch.finfo(dtype).eps, atol=0
        )
        assert bool(r.isfinite().all())


def rows() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logprobs, old, ref = (-2 + 0.5 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return {
        "logprobs": logprobs,
        "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64),
        "old_logprobs": old,
        "ref_logprobs": ref,
        "weights": torch.rand(4, 5, generator=generator, dtype=torch.float64),
    }


MASK = torch.arange(5) < torch.tensor([5, 3, 0, 1])[:, None]


def loss_of(data: dict[str, Tensor], mask: Tensor, o: LossConfig) -> tuple[LossTerms, Tensor]:
    data = dict(data)
    logprobs = data.pop("logprobs").clone().requires_grad_()
    terms = policy_loss(logprobs, data.pop("advantages"), mask, o, Totals(4, 9, 1, 5), **data)
    return terms, torch.autograd.grad(terms.loss, logprobs)[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_dirt_under_the_mask_reaches_nothing(kind: str, level: str, bad: float) -> None:
    options = LossConfig.model_validate({"kind": kind, "beta": 0.1, "ratio": level, "bias_corrected_kl": True})
    clean, clean_grad = loss_of(rows(), MASK, options)
    for name in rows():
        data = rows()
        data[name] = data[name].clone()
        data[name][~MASK if data[name].dim() == 2 else 2] = bad  # row 2 is empty
        dirty, grad = loss_of(data, MASK, options)
        assert torch.equal(dirty.loss, clean.loss), name
        assert torch.equal(grad, clean_grad), name
        assert mean_metrics([dirty]) == mean_metrics([clean]), name
    one_weight = {**rows(), "weights": torch.tensor([[1.0], [0.5], [bad], [2.0]])}
    assert loss_of(one_weight, MASK, options)[0].loss.isfinite()
    ratio = importance_ratio(
        rows()["logprobs"].masked_fill(~MASK, bad), rows()["old_logprobs"], MASK, level=options.ratio
    )
    assert bool(ratio.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64])
def test_masks_of_zeros_and_ones_are_masks(dtype: torch.dtype) -> None:
    options = LossConfig(kind="grpo", beta=0.1)
    (expected, grad), (found, same) = loss_of(rows(), MASK, options), loss_of(rows(), MASK.to(dtype), options)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(grad, same)
    assert found.tokens == 9
    args = rows()["logprobs"], rows()["old_logprobs"]
    assert torch.equal(importance_ratio(*args, MASK.to(dtype)), importance_ratio(*args, MASK))
    assert torch.equal(rollout_correction(*args, MASK.to(dtype)), rollout_correction(*args, MASK))


@pytest.mark.parametrize("mask", [MASK * 2, MASK * 0.5, MASK.int() - 1, MASK.float().masked_fill(~MASK, math.nan)])
def test_other_masks_are_refused_by_name(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="mask must hold nothing but 0 and 1"):
        loss_of(rows(), mask, LossConfig())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("advantages", (5,)), ("weights", (5,)), ("weights", (4, 4)), ("old_logprobs", (4, 4)), ("ref_logprobs", (3, 5))],
)
def test_shapes_that_do_not_fit_are_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        loss_of({**rows(), name: torch.zeros(shape)}, MASK, LossConfig(beta=0.1))
    with pytest.raises(ValueError, match="mask must have shape"):
        loss_of(rows(), MASK[:, :4], LossConfig(beta=0.1))


def test_nothing_to_train_on_is_no_division_by_zero() -> None:
    for kind in KINDS:
        data = rows()
        logprobs = data["logprobs"].requires_grad_()
        none = torch.zeros_like(MASK)
        terms = policy_loss(
            logprobs,
            data["advantages"],
            none,
            LossConfig.model_validate({"kind": kind, "beta": 0.0}),
            Totals(0, 0, 0, 5),
        )
        assert float(terms.loss.detach()) == 0.0
        assert not torch.autograd.grad(terms.loss, logprobs)[0].any()
        assert mean_metrics([terms]) == {"loss": 0.0}  # the mean of nothing is not 0


EQUAL = [(0.7, 8), (12345.678, 3), (0.1, 3), (1e-30, 7), (1e30, 6), (-3.3333, 5), (0.0, 4), (1.0, 1), (0.3, 64)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize(("reward", "size"), EQUAL)
def test_equal_rewards_have_exactly_no_advantage(reward: float, size: int, scale: Any, dtype: torch.dtype) -> None:
    if reward > torch.finfo(dtype).max:
        return
    others = torch.arange(size, dtype=dtype)  # so that the batch has a deviation
    rewards = torch.cat([torch.full((size,), reward, dtype=dtype), others, torch.full((size,), -reward, dtype=dtype)])
    advantages = group_advantages(rewards, size, scale=scale)
    assert not advantages[:size].any()
    assert not advantages[2 * size :].any()
    assert bool(advantages.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("spread", [1e-12, 1e-6, 1.0, 1e6, 1e200])
def test_advantages_against_exact_fractions(spread: float, scale: Any, dtype: torch.dtype) -> None:
    if dtype is torch.float32 and spread > 1e30:
        return
    raw = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    raw = (raw + 12345.678).to(dtype)
    exact_rewards = [[Fraction(float(x)) for x in row] for row in raw]
    everyone = [x for row in exact_rewards for x in row]

    def deviation(values: list[Fraction]) -> float:
        mean = sum(values) / len(values)
        variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1)
        return float(variance ** Fraction(1, 2)) if variance < 10**300 else float(math.isqrt(int(variance)))

    expected = []
    for row in exact_rewards:
        divisor = {"none": 1.0, "group": deviation(row) + 1e-4, "batch": deviation(everyone) + 1e-4}[scale]
        expected += [float(x - sum(row) / len(row)) / divisor for x in row]
    found = group_advantages(raw.flatten(), 6, scale=scale)
    assert found.dtype is dtype
    # Differences within a group are exact, or rounded once, in fp64; then rounded to the dtype.
    scale_of = max(map(abs, expected))
    rounding = 16 * torch.finfo(torch.float64).eps + torch.finfo(dtype).eps
    batch_mean = 12345.678 * 16 * torch.finfo(torch.float64).eps / spread  # a batch's members need not be close
    torch.testing.assert_close(
        found.double(),
        torch.tensor(expected, dtype=torch.float64),
        rtol=rounding,
        atol=scale_of * (rounding + batch_mean),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_reward_that_was_not_measured_counts_nowhere(scale: Any, bad: float) -> None:
    rewards = torch.tensor([1.0, bad, 0.0, 0.5, bad, bad, bad, bad, bad, 2.0, bad, bad])
    found = group_advantages(rewards, 4, scale=scale)
    assert not found[~rewards.isfinite()].any()
    deviation = {"group": torch.tensor([1.0, 0.0, 0.5]).std(), "batch": torch.tensor([1.0, 0.0, 0.5, 2.0]).std()}
    divisor = float(deviation[scale]) + 1e-4 if scale != "none" else 1.0
    torch.testing.assert_close(found[[0, 2, 3]], torch.tensor([0.5, -0.5, 0.0]) / divisor)
    assert found[9] == 0  # alone in its group


def test_rewards_that_are_not_whole_groups_are_refused() -> None:
    for shape, size in (((7,), 4), ((4, 2), 2), ((4,), 0)):
        with pytest.raises(ValueError, match="groups of"):
            group_advantages(torch.zeros(shape), size)
    assert group_advantages(torch.zeros(0), 4).shape == (0,)
