"""Cross-entropy without collapse: torch's own where that is right, alive where that is dead."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from grpo_numerics import collapse_free_cross_entropy, collapse_free_log_softmax, symlog

INF = math.inf
EPS = torch.finfo(torch.float32).eps
CONTRACT: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])},
    "ignored": {"ignore_index": 2},
    "smoothed": {"label_smoothing": 0.2},
    "all": {"weight": torch.tensor([0.5, 2.0, 0.1, 1.0, 3.0]), "ignore_index": 1, "label_smoothing": 0.3},
}


@pytest.mark.parametrize("normalizer", ["softmax", "stablemax"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", CONTRACT.values(), ids=CONTRACT.keys())
@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 5, 3), (2, 5, 3, 4)])
def test_the_contract_is_that_of_cross_entropy(
    shape: tuple[int, ...], options: dict[str, Any], reduction: str, normalizer: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(shape, generator=generator)).requires_grad_()
    plain = symlog(x) if normalizer == "stablemax" else x
    classes = 0 if len(shape) == 1 else 1
    hard = torch.randint(5, shape[:classes] + shape[classes + 1 :], generator=generator)
    soft = torch.softmax(torch.randn(shape, generator=generator), classes)
    for target in [hard] if "ignore_index" in options else [hard, soft]:
        expected = F.cross_entropy(plain, target, reduction=reduction, **options)
        found = collapse_free_cross_entropy(x, target, reduction=reduction, normalizer=normalizer, **options)
        torch.testing.assert_close(found, expected, equal_nan=True)
        slopes = [torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in (found, expected)]
        torch.testing.assert_close(*slopes, equal_nan=True)


@pytest.mark.parametrize("lead", [5.0, 17.0, 21.0, 40.0, 80.0])
@pytest.mark.parametrize("classes", [2, 113])
def test_loss_and_gradient_of_a_sure_target(lead: float, classes: int) -> None:
    x = torch.zeros(1, classes)
    x[0, 1] = lead
    x.requires_grad_()
    target = torch.tensor([1])
    loss = collapse_free_cross_entropy(x, target)
    (gradient,) = torch.autograd.grad(loss, x)
    with mpmath.workdps(60):
        rest = (classes - 1) * mpmath.exp(-mpmath.mpf(lead))
        exact, slope = float(mpmath.log1p(rest)), float(-rest / (1 + rest))
    relative = 16 * EPS  # exp, a sum of equal terms, log1p: leads are exact in fp32
    assert loss.item() == pytest.approx(exact, rel=relative)
    assert gradient[0, 1].item() == pytest.approx(slope, rel=relative)
    assert gradient[0, 0].item() == pytest.approx(-slope / (classes - 1), rel=relative)


@pytest.mark.parametrize(("classes", "dead_from"), [(2, 16.7), (113, 20.8)])
def test_plain_cross_entropy_is_dead_there(classes: int, dead_from: float) -> None:
    x = torch.zeros(1, classes)
    x[0, 1] = dead_from
    x.requires_grad_()
    for loss_of, alive in ((F.cross_entropy, False), (collapse_free_cross_entropy, True)):
        loss = loss_of(x, torch.tensor([1]))
        (gradient,) = torch.autograd.grad(loss, x)
        assert (loss.item() > 0) is alive
        assert (gradient[0, 1].item() < 0) is alive


def test_a_wrong_leader_and_huge_gaps() -> None:
    x = torch.tensor([[1000.0, 0.0], [0.0, 1e30]], requires_grad=True)
    loss = collapse_free_cross_entropy(x, torch.tensor([1, 1]), reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss.tolist() == [1000.0, 0.0]
    assert gradient.tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_masked_classes() -> None:
    x = torch.tensor([[1.0, -INF, 2.0], [-INF, -INF, -INF]], requires_grad=True)
    log_p = collapse_free_log_softmax(x)
    assert log_p[0, 1] == -INF
    assert log_p[1].isnan().all()
    (gradient,) = torch.autograd.grad(log_p[0, 0], x)
    p = math.exp(2) / (math.exp(1) + math.exp(2))
    assert gradient[0].tolist() == pytest.approx([p, 0.0, -p], rel=4 * EPS)
    soft = torch.tensor([[0.5, 0.0, 0.5]])
    assert collapse_free_cross_entropy(x[:1], soft).isfinite()


def test_gradcheck_and_ties() -> None:
    x = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    torch.autograd.gradcheck(collapse_free_log_softmax, x)
    tied = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(collapse_free_cross_entropy(tied, torch.tensor([0])), tied)
    assert gradient[0].tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_fp32(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 30.0]], dtype=dtype)
    loss = collapse_free_cross_entropy(x, torch.tensor([1]))
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(math.exp(-30), rel=4 * EPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": "avg"}, "reduction must be"),
        ({"label_smoothing": 1.5}, "label_smoothing must lie"),
        ({"normalizer": "sigmoid"}, "normalizer must be"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, "target of shape"),
        ({"target": torch.zeros(2, 4)}, "target probabilities must have"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collapse_free_cross_entropy(torch.zeros(2, 3), **{"target": torch.tensor([0, 1]), **arguments})
