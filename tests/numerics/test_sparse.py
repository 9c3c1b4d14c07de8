"""Sparsemax and entmax: the definition, and the inputs on which the package alone gives NaN or dies."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from grpo_numerics import entmax15, entmax15_loss, sparsemax, sparsemax_loss

INF = math.inf
PROJECTIONS = {"sparsemax": sparsemax, "entmax15": entmax15}
LOSSES = {"sparsemax": sparsemax_loss, "entmax15": entmax15_loss}


def by_bisection(name: str, x: np.ndarray) -> np.ndarray:
    """The definition, in float64: p(tau) with tau such that p sums to one."""
    x = x - x.max()
    power, scale = (1, 1.0) if name == "sparsemax" else (2, 0.5)
    low, high = -2.0, 0.0
    for _ in range(200):
        tau = (low + high) / 2
        p = np.clip(scale * x - tau, 0, None) ** power
        low, high = (tau, high) if p.sum() > 1 else (low, tau)
    return p


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 7, 1021])
def test_projection_is_the_definition(name: str, dtype: torch.dtype, vocab: int) -> None:
    x = (3 * torch.randn(4, vocab, generator=torch.Generator().manual_seed(vocab))).to(dtype)
    p = PROJECTIONS[name](x)
    expected = np.stack([by_bisection(name, row) for row in x.double().numpy()])
    # the threshold is a mean of a few entries of magnitude one; for entmax the square root of a difference of them
    np.testing.assert_allclose(p.double(), expected, rtol=0, atol=64 * torch.finfo(p.dtype).eps)
    along_first = PROJECTIONS[name](x.T, dim=0).T
    assert torch.equal(along_first, p)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_masks_and_void_rows(name: str) -> None:
    x = torch.tensor([[1.0, -INF, 0.5], [-INF, -INF, -INF], [-1e30, 0.2, 0.0]], requires_grad=True)
    p = PROJECTIONS[name](x)
    assert p[0, 1] == 0
    assert p[2, 0] == 0
    assert p[1].isnan().all()
    assert p[[0, 2]].sum(-1).tolist() == pytest.approx([1.0, 1.0], rel=1e-6)
    (gradient,) = torch.autograd.grad(p[0, 0], x)
    assert gradient.isfinite().all()
    assert gradient[0].sum().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradient_is_p_minus_onehot(name: str) -> None:
    x = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.arange(5)
    loss = LOSSES[name](x, target, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    expected = PROJECTIONS[name](x.detach()) - torch.nn.functional.one_hot(target, 9)
    torch.testing.assert_close(gradient, expected)
    torch.autograd.gradcheck(lambda z: LOSSES[name](z, target, reduction="none"), x)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_zero_for_a_sure_target_and_honours_ignore_index(name: str) -> None:
    x = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, -INF]], dtype=torch.float16)
    assert LOSSES[name](x, torch.tensor([0, 1]), reduction="none").tolist() == [0.0, 0.0]
    some = torch.tensor([1, -100])
    assert LOSSES[name](x, some, reduction="none")[1] == 0
    assert LOSSES[name](x, some).item() == LOSSES[name](x[:1], some[:1]).item() > 0
    assert LOSSES[name](x, torch.tensor([0, 2]), reduction="none")[1] == INF


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "entmax", None)
    with pytest.raises(ImportError, match="pip install 'entmax"):
        sparsemax(torch.zeros(3))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="reduction must be"):
        sparsemax_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), reduction="avg")
    with pytest.raises(ValueError, match="target must have shape"):
        entmax15_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
