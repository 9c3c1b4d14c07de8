"""Softmax and its kin against scipy in float64 and mpmath, on the inputs that break naive code."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from grpo_numerics import entropy, log_softmax, logsumexp, softmax, token_logprobs
from torch import Tensor

INF = math.inf
HARD = {
    "small": [0.1, 0.2, 0.3, 0.4, 0.5],
    "mixed": [-3, 0, 1, 2, 5],
    "large": [1, 92, 3, 0, 2],
    "very negative": [-100, -200, -300, -400, -500],
    "identical": [5, 5, 5, 5, 5],
    "masked": [1, -INF, 3, 0, 2],
    "thousands": [1000, 1001, 1002],
    "minus thousands": [-1000, -1001, -1002],
    "hundreds": [100, 102, 98],
    "half overflows": [11, 12, 13],
    "one": [3.0],
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def rounding(result_dtype: torch.dtype, *magnitudes: np.ndarray) -> float:
    """Four roundings of the largest finite number involved: the maximum's subtraction, exp and sum, log, difference."""
    largest = max(float(np.abs(m[np.isfinite(m)]).max(initial=1.0)) for m in magnitudes)
    return 4 * torch.finfo(result_dtype).eps * largest


def reference(x: Tensor) -> np.ndarray:
    return x.double().numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", HARD.values(), ids=HARD.keys())
def test_hard_inputs_match_scipy(values: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor(values, dtype=dtype)
    exact = reference(x)
    lse, log_p, p = logsumexp(x), log_softmax(x), softmax(x)
    accumulator = torch.float64 if dtype is torch.float64 else torch.float32
    assert lse.dtype == log_p.dtype == p.dtype == accumulator
    tolerance = rounding(accumulator, exact)
    np.testing.assert_allclose(lse.double(), scipy.special.logsumexp(exact), rtol=0, atol=tolerance)
    np.testing.assert_allclose(log_p.double(), scipy.special.log_softmax(exact), rtol=0, atol=tolerance)
    np.testing.assert_allclose(p.double(), scipy.special.softmax(exact), rtol=0, atol=tolerance)


def test_worked_values() -> None:
    assert log_softmax(torch.tensor([100.0, 102.0, 98.0])).tolist() == pytest.approx([-2.142, -0.142, -4.142], abs=1e-3)
    logits = torch.tensor([1.2, 92, 3.1, 0.5, 2.9])
    assert -token_logprobs(logits, torch.tensor(2)).item() == pytest.approx(88.9, abs=1e-5)
    assert logsumexp(torch.zeros(5)).item() == pytest.approx(math.log(5), rel=1e-7)
    assert softmax(torch.tensor([5.0] * 5)).tolist() == pytest.approx([0.2] * 5, rel=1e-7)
    assert softmax(torch.tensor([1, -INF, 3, 0, 2]))[1] == 0


def test_the_maximum_is_taken_per_row_and_over_the_asked_dim() -> None:
    x = torch.tensor([[0.0, 1.0], [1e4, 1e4 + 1]])
    expected = scipy.special.log_softmax(reference(x), axis=1)
    np.testing.assert_allclose(log_softmax(x), expected, rtol=1e-6)
    np.testing.assert_allclose(log_softmax(x.T, dim=0).T, expected, rtol=1e-6)


def test_a_row_without_distribution_is_nan_and_it_alone() -> None:
    bad = [[-INF, -INF, -INF], [0.0, math.nan, 1.0], [0.0, INF, 1.0]]
    x = torch.tensor([[1.0, 2.0, 3.0], *bad], requires_grad=True)
    targets = torch.tensor([0, 1, 2, 2])
    for normalizer in ("softmax", "stablemax"):
        for figure in (token_logprobs(x, targets, normalizer=normalizer), entropy(x, normalizer=normalizer)):
            assert figure.isnan().tolist() == [False, True, True, True]
            (gradient,) = torch.autograd.grad(figure[0], x)
            assert gradient[0].isfinite().all()
    assert softmax(x).isnan().any(-1).tolist() == [False, True, True, True]
    assert logsumexp(x)[1] == -INF


def reference_logits(logits: Tensor, temperature: float, normalizer: str) -> np.ndarray:
    z = reference(logits) / temperature
    return np.sign(z) * np.log1p(np.abs(z)) if normalizer == "stablemax" else z


@pytest.mark.parametrize("vocab", [1, 7, 33, 1021])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_token_logprobs_and_entropy_match_scipy(
    vocab: int, dtype: torch.dtype, normalizer: str, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (5 * torch.randn(3, 4, vocab, generator=generator)).to(dtype)
    targets = torch.randint(vocab, (3, 4), generator=generator)
    z = reference_logits(logits, temperature, normalizer)
    log_p = scipy.special.log_softmax(z, axis=-1)
    expected = np.take_along_axis(log_p, targets.numpy()[..., None], -1)[..., 0]
    scores = token_logprobs(logits, targets, temperature=temperature, normalizer=normalizer)
    tolerance = rounding(scores.dtype, z, log_p)
    np.testing.assert_allclose(scores.double(), expected, rtol=0, atol=tolerance)
    # p log p has slope up to |log p| in p, which is itself within tolerance: once more per unit of |log p|
    expected_entropy = -(np.exp(log_p) * log_p).sum(-1)
    found = entropy(logits, temperature=temperature, normalizer=normalizer)
    np.testing.assert_allclose(found.double(), expected_entropy, rtol=0, atol=tolerance * (1 + expected_entropy.max()))
    rows = torch.full((3, 4), temperature, dtype=torch.float64)
    torch.testing.assert_close(token_logprobs(logits, targets, temperature=rows, normalizer=normalizer), scores)


@pytest.mark.parametrize("lead", [1.0, 16.0, 17.0, 30.0, 80.0])
def test_logprob_of_a_sure_token_keeps_relative_precision(lead: float) -> None:
    logits = torch.tensor([0.0, lead, 0.0], requires_grad=True)
    score = token_logprobs(logits, torch.tensor(1))
    (gradient,) = torch.autograd.grad(score, logits)
    with mpmath.workdps(50):
        rest = 2 * mpmath.exp(-mpmath.mpf(lead))
        exact, slope = float(-mpmath.log(1 + rest)), float(rest / (1 + rest))
    # the argument of exp is exact up to log 2's rounding at magnitude `lead`: relative error lead * eps
    relative = 4 * max(lead, 1) * torch.finfo(torch.float32).eps
    assert score.item() == pytest.approx(exact, rel=relative)
    assert gradient[1].item() == pytest.approx(slope, rel=relative)


def test_masked_tokens() -> None:
    logits = torch.tensor([[1.0, -INF, 2.0], [-INF, 4.0, -INF]], requires_grad=True)
    scores = token_logprobs(logits, torch.tensor([1, 1]))
    assert scores.tolist() == [-INF, 0.0]
    (gradient,) = torch.autograd.grad(scores[1], logits)
    assert gradient.tolist() == [[0.0] * 3] * 2
    assert entropy(logits).tolist() == pytest.approx([entropy(torch.tensor([1.0, 2.0])).item(), 0.0])


@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
def test_gradients(normalizer: str) -> None:
    logits = (3 * torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    targets = torch.tensor([0, 3, 6])
    temperature = torch.tensor([0.5, 1.0, 1.7])
    torch.autograd.gradcheck(
        lambda x: token_logprobs(x, targets, temperature=temperature, normalizer=normalizer), logits
    )
    torch.autograd.gradcheck(lambda x: entropy(x, temperature=temperature, normalizer=normalizer), logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": torch.tensor([0, 3])}, r"targets must lie in \[0, 3\)"),
        ({"targets": torch.tensor([-1, 0])}, r"targets must lie in \[0, 3\)"),
        ({"targets": torch.tensor([0])}, "targets must have shape"),
        ({"targets": torch.tensor([0.0, 1.0])}, "targets must be integer"),
        ({"temperature": 0.0}, "temperature must be finite and > 0"),
        ({"temperature": math.nan}, "temperature must be finite and > 0"),
        ({"temperature": torch.tensor([1.0, -1.0])}, "temperature must be finite and > 0"),
        ({"normalizer": "sigmoid"}, "normalizer must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_logprobs(torch.zeros(2, 3), **{"targets": torch.tensor([0, 1]), **arguments})
