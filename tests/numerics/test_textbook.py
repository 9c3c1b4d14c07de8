"""The written-out forms: right in float64, and wrong in the small types in the ways the page on stability tells of."""

from __future__ import annotations

import math

import pytest
import torch
from grpo_numerics import entmax15, softmax, sparsemax, stablemax
from grpo_numerics.textbook import PROJECTIONS, Projection, naive, stable

INF = math.inf
OURS = {"softmax": softmax, "stablemax": stablemax, "sparsemax": sparsemax, "entmax15": entmax15}
SMALL = (torch.float16, torch.bfloat16, torch.float32)


def logits(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize("form", [naive, stable])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_both_forms_are_the_definition_in_float64(form, projection: Projection, size: int) -> None:
    x = 3 * torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    steps = form(x, projection)
    # 64 terms of magnitude ten at most: a few hundred roundings; the sparse two take a square root of a difference of them
    torch.testing.assert_close(steps.p, OURS[projection](x), rtol=0, atol=1e-12)
    torch.testing.assert_close(steps.logprobs.exp(), steps.p, rtol=1e-12, atol=1e-15)
    if steps.terms is not None:
        assert steps.total is not None
        assert steps.logsumexp is not None
        torch.testing.assert_close(steps.terms / steps.total, steps.p)


def test_logsumexp_is_that_of_the_logits_in_both_forms() -> None:
    x = logits(1.2, 4.7, 3.1, 0.5, 2.9, dtype=torch.float64)
    for form in (naive, stable):
        found = form(x, "softmax").logsumexp
        assert found is not None
        assert found.item() == pytest.approx(torch.logsumexp(x, 0).item(), rel=1e-14)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("form", [naive, stable])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_every_step_is_in_the_dtype_of_the_logits(dtype: torch.dtype, form, projection: Projection) -> None:
    steps = form(logits(0.1, 0.2, 0.3, dtype=dtype), projection)
    there = [t for t in (steps.p, steps.logprobs, steps.terms, steps.total, steps.logsumexp) if t is not None]
    assert {t.dtype for t in there} == {dtype}
    # a dozen roundings, of sums of up to three terms
    assert steps.p.sum().double().item() == pytest.approx(1.0, abs=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", SMALL)
def test_overflow_is_nan_where_it_is_and_zero_beside_it(dtype: torch.dtype) -> None:
    x = logits(1, 92, 3, 0, 2, dtype=dtype)
    steps = naive(x, "softmax")
    assert steps.terms is not None
    assert steps.terms[1] == INF
    assert steps.p.isnan().tolist() == [False, True, False, False, False]
    assert steps.p[[0, 2, 3, 4]].tolist() == [0, 0, 0, 0]
    # e^-91 is 3e-40: below the smallest normal float32, and still a number
    assert stable(x, "softmax").p.tolist() == pytest.approx([0, 1, 0, 0, 0], abs=1e-38)


def test_only_float16_overflows_at_twelve() -> None:
    """log of the largest float16 is 11.09, of the two others 88.72."""
    nan = {dtype: bool(naive(logits(0, 12, dtype=dtype), "softmax").p.isnan().any()) for dtype in SMALL}
    assert nan == {torch.float16: True, torch.bfloat16: False, torch.float32: False}


@pytest.mark.parametrize("dtype", SMALL)
def test_underflow_is_nought_over_nought(dtype: torch.dtype) -> None:
    x = logits(-1000, -1001, -1002, dtype=dtype)
    assert naive(x, "softmax").p.isnan().all()
    assert stable(x, "softmax").p.isfinite().all()


def test_the_logarithm_of_a_rounded_probability_is_gone_and_the_log_prob_is_not() -> None:
    x = logits(0, 200)
    assert naive(x - 150, "softmax").logprobs[0] == -INF
    assert stable(x, "softmax").logprobs[0] == -200


def test_stablemax_needs_no_maximum() -> None:
    for x in (logits(1000, 1001, 1002), logits(-1000, -1001, -1002), logits(1, 92, 3, 0, 2)):
        torch.testing.assert_close(naive(x, "stablemax").p, stable(x, "stablemax").p, rtol=1e-5, atol=0)


def test_entmax_without_the_maximum_cancels() -> None:
    """At a thousand the mean of squares has no digit left for the spread: the probabilities do not even sum to one."""
    x = logits(1000, 1000.5, 1001)
    assert abs(naive(x, "entmax15").p.sum().item() - 1) > 0.01
    assert stable(x, "entmax15").p.sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("form", [naive, stable])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_masked_entry_is_zero_and_a_masked_row_nan(form, projection: Projection) -> None:
    assert form(logits(1, -INF, 3, 0, 2), projection).p[1] == 0
    assert form(logits(-INF, -INF, -INF), projection).p.isnan().all()
