"""StableMax: values and gradients at the points where other implementations break, and the whole loss contract."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grpo_numerics import log_stablemax, stablemax, stablemax_cross_entropy, symlog
from torch import Tensor

INF = math.inf
EPS = torch.finfo(torch.float32).eps
POINTS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-8, -1e-8, 1e-38, 88.0, -1e4, 1e30, -1e30]


def definition(x: np.ndarray) -> np.ndarray:
    """s(x) as the paper writes it, in float64."""
    x = x.astype(np.float64)
    return np.where(x >= 0, x + 1, 1 / (1 + np.abs(x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [*POINTS, -INF, INF])
def test_symlog_and_its_slope(value: float, dtype: torch.dtype) -> None:
    x = torch.tensor(value, dtype=dtype, requires_grad=True)
    y = symlog(x)
    (slope,) = torch.autograd.grad(y, x)
    exact = x.detach().double().numpy()
    with np.errstate(invalid="ignore"):
        expected = float(np.sign(exact) * np.log1p(np.abs(exact)))
    expected_slope = float(1 / (1 + np.abs(exact)))
    assert y.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert y.item() == pytest.approx(expected, rel=2 * torch.finfo(y.dtype).eps)
    # autograd rounds the slope to the input's dtype
    assert slope.item() == pytest.approx(expected_slope, rel=2 * torch.finfo(dtype).eps, abs=torch.finfo(dtype).tiny)


def test_symlog_keeps_nan() -> None:
    assert symlog(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("row", [POINTS[:11], [1.0] * 4, [-1e4, 1e4, 0.0], [1.0, -INF, 3.0], [5.0]])
def test_probabilities_are_the_definition(row: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor([row, row[::-1]], dtype=dtype)
    s = definition(x.double().numpy())
    expected = s / s.sum(-1, keepdims=True)
    p, log_p = stablemax(x), log_stablemax(x)
    # log s is rounded at its own magnitude before it is exponentiated
    relative = 8 * torch.finfo(p.dtype).eps * (1 + np.log(s.max()) - np.log(s[s > 0].min()))
    np.testing.assert_allclose(p.double(), expected, rtol=relative)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_p.double(), np.log(expected), rtol=relative, atol=relative)


def test_huge_logits_do_not_overflow() -> None:
    p = stablemax(torch.tensor([1e30, 1e30, -1e30, 3e38]))
    # log s = 88 carries an error of eps * 88 into the exponential
    np.testing.assert_allclose(p, np.array([1e30, 1e30, 0, 3e38]) / 3e38, rtol=2 * 88 * EPS, atol=1e-38)


def test_a_row_of_masks_is_nan_and_it_alone() -> None:
    x = torch.tensor([[-INF, -INF], [0.0, -INF]])
    assert stablemax(x).tolist()[1] == [1.0, 0.0]
    assert log_stablemax(x).isnan().tolist() == [[True, True], [False, False]]


def test_it_is_not_shift_invariant() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    assert not torch.allclose(stablemax(x), stablemax(x + 1))


def test_a_polynomial_tail_needs_large_logits() -> None:
    vocab = 128_000
    negative = math.sqrt(vocab - 1) - 1  # all others at -M: p = 1/2 from (1 + M)^2 = V - 1 on
    others = torch.full((vocab,), -negative, dtype=torch.float64)
    others[0] = negative
    assert stablemax(others)[0].item() == pytest.approx(0.5, rel=1e-9)
    clamped = torch.full((vocab,), -10.0, dtype=torch.float64)
    clamped[0] = 100.0
    assert stablemax(clamped)[0].item() < 0.08


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_the_loss_at_the_traps(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1.0, -1.0, 1e30, -1e30, 3.0]], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(stablemax_cross_entropy(x, torch.tensor([5])), x)
    s = definition(x.detach().numpy())
    p = s / s.sum()
    p[0, 5] -= 1
    expected = p / (1 + np.abs(x.detach().double().numpy()))
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(gradient.double(), expected, rtol=200 * eps, atol=torch.finfo(dtype).tiny)


CONTRACT: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])},
    "ignored": {"ignore_index": 2},
    "smoothed": {"label_smoothing": 0.2},
    "all": {"weight": torch.tensor([0.5, 2.0, 0.1, 1.0, 3.0]), "ignore_index": 1, "label_smoothing": 0.3},
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", CONTRACT.values(), ids=CONTRACT.keys())
@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 5, 3), (2, 5, 3, 4)])
def test_the_contract_is_that_of_cross_entropy(shape: tuple[int, ...], options: dict[str, Any], reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.randn(shape, generator=generator)
    classes = 0 if len(shape) == 1 else 1
    target = torch.randint(5, shape[:classes] + shape[classes + 1 :], generator=generator)

    def log_s(z: Tensor) -> Tensor:
        return torch.sign(z) * torch.log1p(z.abs())

    expected = F.cross_entropy(log_s(x), target, reduction=reduction, **options)
    torch.testing.assert_close(
        stablemax_cross_entropy(x, target, reduction=reduction, **options), expected, equal_nan=True
    )
    if options.get("ignore_index") is None:
        soft = torch.softmax(torch.randn(shape, generator=generator), classes)
        expected = F.cross_entropy(log_s(x), soft, reduction=reduction, **options)
        torch.testing.assert_close(stablemax_cross_entropy(x, soft, reduction=reduction, **options), expected)


def test_bf16_logits_lose_nothing_more() -> None:
    x = torch.randn(64, 1021, generator=torch.Generator().manual_seed(3)).bfloat16()
    target = torch.arange(64)
    loss = stablemax_cross_entropy(x, target)
    assert loss.dtype is torch.float32
    s = definition(x.double().numpy())
    expected = -np.log(s[np.arange(64), target] / s.sum(-1)).mean()
    assert loss.item() == pytest.approx(expected, rel=8 * EPS)


def test_a_patched_cross_entropy_does_not_call_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "cross_entropy", stablemax_cross_entropy)
    assert F.cross_entropy(torch.zeros(1, 4), torch.tensor([0])).item() == pytest.approx(math.log(4))
