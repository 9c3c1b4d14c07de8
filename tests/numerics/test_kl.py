"""KL estimators against 50-digit arithmetic, from differences of 1e-30 to 1e4."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from grpo_numerics import KlKind, kl_estimate
from grpo_numerics.kl import LIMIT, k3

DIFFERENCES = [0.0, 1e-30, 1e-15, 1e-8, 3e-4, 1e-3, 1e-2, 0.1, 0.3, 0.49, 0.4999999, 0.5, 0.51, 1.0, 3.0, 10.0, 19.9]
SIGNED = [sign * d for d in DIFFERENCES for sign in (1, -1)] + [-20.0, -100.0, -1e4]


def exact_k3(d: float) -> float:
    with mpmath.workdps(80):
        return float(mpmath.expm1(mpmath.mpf(d)) - mpmath.mpf(d))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", SIGNED)
def test_k3_has_full_relative_precision(d: float, dtype: torch.dtype) -> None:
    logp = torch.tensor(0.0, dtype=dtype, requires_grad=True)
    ref = torch.tensor(d, dtype=dtype)
    value = k3(logp, ref)
    (slope,) = torch.autograd.grad(value, logp)
    eps = torch.finfo(dtype).eps
    # From 1/2 on expm1(d) - d loses two bits; large d: e^d has the relative error of its argument, which is exact here.
    assert value.item() == pytest.approx(exact_k3(ref.item()), rel=8 * eps, abs=torch.finfo(dtype).tiny)
    with mpmath.workdps(80):
        expected_slope = float(-mpmath.expm1(mpmath.mpf(ref.item())))
    assert slope.item() == pytest.approx(expected_slope, rel=8 * eps, abs=torch.finfo(dtype).tiny)


def test_k3_is_never_negative_where_the_subtraction_is() -> None:
    d = torch.linspace(-1e-3, 1e-3, 10_001)
    assert bool((d.exp() - d - 1 < 0).any())
    assert bool((k3(torch.zeros_like(d), d) >= 0).all())


@pytest.mark.parametrize("d", [20.5, 88.0, 200.0, 1e4, 1e29])
def test_k3_of_a_huge_difference_is_finite_and_points_home(d: float) -> None:
    logp = torch.tensor(0.0, requires_grad=True)
    value = k3(logp, torch.tensor(d))
    (slope,) = torch.autograd.grad(value, logp)
    tangent = exact_k3(LIMIT) + math.expm1(LIMIT) * (d - LIMIT)
    assert value.item() == pytest.approx(tangent, rel=1e-6)
    assert slope.item() == pytest.approx(-math.expm1(LIMIT), rel=1e-6)


def test_k3_without_limit_is_the_plain_function() -> None:
    assert k3(torch.tensor(0.0), torch.tensor(60.0), limit=math.inf).item() == pytest.approx(exact_k3(60.0), rel=1e-6)
    assert k3(torch.tensor(0.0), torch.tensor(100.0), limit=math.inf).item() == math.inf


def test_k3_plus_has_the_value_of_k3_and_the_gradient_of_k2() -> None:
    logp = torch.linspace(-3, 3, 31).requires_grad_()
    ref = torch.zeros(31)
    plus, through = kl_estimate("k3+", logp, ref), kl_estimate("k2", logp, ref)
    assert torch.equal(plus, kl_estimate("k3", logp, ref))
    slopes = [torch.autograd.grad(value.sum(), logp)[0] for value in (plus, through)]
    assert torch.equal(*slopes)


def test_the_simple_ones() -> None:
    logp, ref = torch.tensor([-1.0, -2.0]).bfloat16(), torch.tensor([-3.0, -1.5]).bfloat16()
    assert kl_estimate("k1", logp, ref).tolist() == [2.0, -0.5]
    assert kl_estimate("k2", logp, ref).tolist() == [2.0, 0.125]
    assert kl_estimate("abs", logp, ref).tolist() == [2.0, 0.5]
    assert kl_estimate("k3", logp, ref).dtype is torch.float32


def test_estimators_estimate_the_kl() -> None:
    """Their mean over tokens drawn from the policy is the KL, for the unbiased two."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 50, dtype=torch.float64, generator=generator).log_softmax(-1)
    kl = (policy.exp() * (policy - reference)).sum().item()
    for kind in ("k1", "k3"):
        mean = (policy.exp() * kl_estimate(kind, policy, reference)).sum().item()
        assert mean == pytest.approx(kl, rel=1e-12)


def test_gradcheck() -> None:
    d = torch.tensor([-30.0, -1.0, -0.2, 0.1, 0.7, 5.0, 25.0], dtype=torch.float64)
    logp = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda a: k3(a, d), logp)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="one of k1, k2, k3"):
        kl_estimate("k4", torch.zeros(1), torch.zeros(1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="same shape"):
        kl_estimate("k1", torch.zeros(1), torch.zeros(2))


GRADIENTS = {  # of each estimator by logp, d being ref - logp
    "k1": lambda d: 1.0,
    "k2": lambda d: -d,
    "k3": lambda d: -math.expm1(min(d, LIMIT)),
    "k3+": lambda d: -d,
    "abs": lambda d: -math.copysign(1.0, d) if d else 0.0,
}
VALUES = {
    "k1": lambda d: -d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: exact_k3(min(d, LIMIT)) + math.expm1(LIMIT) * max(d - LIMIT, 0.0),
    "k3+": lambda d: exact_k3(min(d, LIMIT)) + math.expm1(LIMIT) * max(d - LIMIT, 0.0),
    "abs": abs,
}
# Around every edge: of the series, of fp16's range (11.09), of the tangent, of fp32's exp (88.7); all on bf16's grid.
EDGES = [0.0, 0.25, 0.5, 1.0, 11.0, 11.125, 15.0, 19.875, 20.0, 20.125, 88.0, 89.0, 1000.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", list(VALUES))
@pytest.mark.parametrize("d", sorted({sign * d for d in EDGES for sign in (1, -1)}))
def test_value_and_gradients_at_the_edges(kind: KlKind, d: float, dtype: torch.dtype) -> None:
    d = torch.tensor(d, dtype=dtype).item()
    logp, ref = torch.zeros(1, dtype=dtype, requires_grad=True), torch.full((1,), d, dtype=dtype, requires_grad=True)
    value = kl_estimate(kind, logp, ref)
    by_logp, by_ref = torch.autograd.grad(value.sum(), (logp, ref))
    computed = torch.float64 if dtype is torch.float64 else torch.float32
    eps, narrow = torch.finfo(computed).eps, torch.finfo(dtype)
    assert value.dtype is computed
    assert value.item() == pytest.approx(VALUES[kind](d), rel=8 * eps)
    expected = max(-narrow.max, min(narrow.max, GRADIENTS[kind](d)))
    # Computed in fp32, handed back in the input's dtype: half a unit of that.
    assert by_logp.item() == pytest.approx(expected, rel=8 * eps + narrow.eps / 2)
    assert by_ref.item() == -by_logp.item()


def test_no_estimator_turns_a_finite_difference_into_nan() -> None:
    for d in (1e19, 1e30, 3e38):
        for kind in VALUES:
            logp = torch.tensor([0.0], requires_grad=True)
            for sign in (1, -1):
                value = kl_estimate(kind, logp, torch.tensor([sign * d]))
                (slope,) = torch.autograd.grad(value.sum(), logp)
                assert not value.isnan().any(), (kind, d)
                assert slope.isfinite().all(), (kind, d)


def test_an_infinite_difference_is_infinite_and_its_gradient_is_not_nan() -> None:
    for kind in VALUES:
        logp = torch.tensor([-math.inf, 0.0], requires_grad=True)
        value = kl_estimate(kind, logp, torch.tensor([0.0, -math.inf]))
        (slope,) = torch.autograd.grad(value.sum(), logp)
        assert value.abs().tolist() == [math.inf, math.inf]
        assert not slope.isnan().any(), kind


def test_what_one_masks_before_reaches_no_gradient() -> None:
    logp = torch.tensor([-1.0, math.nan, -math.inf], requires_grad=True)
    mask = torch.tensor([True, False, False])
    for kind in VALUES:
        value = kl_estimate(kind, logp.where(mask, 0.0), torch.zeros(3))
        assert torch.autograd.grad(value.sum(), logp)[0][1:].tolist() == [0.0, 0.0]


def test_a_limit_inside_the_series_is_refused() -> None:
    for limit in (0.1, -1.0, math.nan):
        with pytest.raises(ValueError, match="limit"):
            k3(torch.zeros(1), torch.ones(1), limit=limit)
