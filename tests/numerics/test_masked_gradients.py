"""What is masked or ignored after it was computed has gradient 0, whatever it was: no 0 times NaN reaches a weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from grpo_numerics import (
    collapse_free_cross_entropy,
    collapse_free_log_softmax,
    entmax15,
    entmax15_loss,
    entropy,
    log_softmax,
    log_stablemax,
    logsumexp,
    softmax,
    sparsemax,
    sparsemax_loss,
    stablemax,
    stablemax_cross_entropy,
    token_logprobs,
)
from torch import Tensor

INF = math.inf
VOID = [[-INF] * 4, [math.nan, 0.0, 1.0, 2.0], [INF, 0.0, 1.0, 2.0], [math.nan] * 4]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TARGETS = torch.tensor([3, 0, 1, 2])
LOSSES: dict[str, Callable[..., Tensor]] = {
    "stablemax": stablemax_cross_entropy,
    "collapse-free": collapse_free_cross_entropy,
    "collapse-free stablemax": lambda *a, **k: collapse_free_cross_entropy(*a, **k, normalizer="stablemax"),
    "sparsemax": sparsemax_loss,
    "entmax15": entmax15_loss,
}
ROW_WISE: dict[str, Callable[[Tensor], Tensor]] = {
    "logsumexp": logsumexp,
    "log_softmax": log_softmax,
    "softmax": softmax,
    "log_stablemax": log_stablemax,
    "stablemax": stablemax,
    "collapse_free_log_softmax": collapse_free_log_softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "entropy": entropy,
    "token_logprobs": lambda x: token_logprobs(x, TARGETS[: len(x)]),
}


def logits(bad: list[float], dtype: torch.dtype, at: int = 1) -> Tensor:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[at] = torch.tensor(bad, dtype=torch.float64)
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", VOID, ids=str)
@pytest.mark.parametrize("loss", list(LOSSES))
def test_an_ignored_position_has_no_gradient(loss: str, bad: list[float], dtype: torch.dtype) -> None:
    target = torch.tensor([3, -100, 1, 2])
    for reduction in ("none", "mean", "sum"):
        clean, dirty = logits([0.0] * 4, dtype), logits(bad, dtype)
        values = [LOSSES[loss](x, target, reduction=reduction) for x in (clean, dirty)]
        assert torch.equal(*values)
        gradients = [torch.autograd.grad(v.sum(), x)[0] for v, x in zip(values, (clean, dirty), strict=True)]
        assert torch.equal(*gradients)
        assert not gradients[1][1].any()


@pytest.mark.parametrize("loss", ["stablemax", "collapse-free"])
def test_ignored_positions_of_higher_dimensions_and_smoothing(loss: str) -> None:
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[0, -100, 4], [1, 2, -100]])
    dirty = x.clone()
    dirty[0, :, 1], dirty[1, :, 2] = math.nan, -INF
    found = []
    for values in (x, dirty):
        values.requires_grad_()
        LOSSES[loss](values, target, label_smoothing=0.1).backward()
        assert values.grad is not None
        found.append(values.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("bad", VOID, ids=str)
@pytest.mark.parametrize("name", list(ROW_WISE))
def test_a_row_without_a_distribution_that_is_masked_has_no_gradient(name: str, bad: list[float]) -> None:
    for dtype in DTYPES:
        x, without = logits(bad, dtype), logits([0.0] * 4, dtype)
        value = ROW_WISE[name](x)
        undifferentiated = ROW_WISE[name](x.detach())
        assert torch.equal(value.nan_to_num(7.0), undifferentiated.nan_to_num(7.0))  # gradients change no value
        mask = torch.tensor([True, False, True, True]).reshape(4, *[1] * (value.ndim - 1))
        (gradient,) = torch.autograd.grad(value.where(mask, 0.0).sum(), x)
        (expected,) = torch.autograd.grad(ROW_WISE[name](without).where(mask, 0.0).sum(), without)
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("loss", ["stablemax", "collapse-free", "collapse-free stablemax"])
def test_a_masked_class_of_probability_zero_costs_nothing(loss: str) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([[0.5, 0.0, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0], [0.2, 0.0, 0.3, 0.5]], dtype=torch.float64)
    masked = x.clone()
    masked[:, 1] = -INF
    masked.requires_grad_()
    smaller, kept = x[:, [0, 2, 3]].requires_grad_(), target[:, [0, 2, 3]]
    value, expected = LOSSES[loss](masked, target), LOSSES[loss](smaller, kept)
    torch.testing.assert_close(value, expected)
    (gradient,), (wanted,) = torch.autograd.grad(value, masked), torch.autograd.grad(expected, smaller)
    torch.testing.assert_close(gradient[:, [0, 2, 3]], wanted)
    assert not gradient[:, 1].any()


def test_the_gradient_by_target_probabilities_is_the_surprise() -> None:
    """Also where the probability is 0: d loss / d target_j = -log p_j."""
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(collapse_free_cross_entropy(x, target, reduction="sum"), target)
    torch.testing.assert_close(gradient, -x.log_softmax(-1))


def test_a_class_of_weight_zero_may_be_masked() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = -INF
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    loss = collapse_free_cross_entropy(x, torch.tensor([0, 2, 3]), weight, label_smoothing=0.1)
    finite = x.masked_fill(x == -INF, -1e4)  # exp underflows: the same distribution, and the weight is 0
    torch.testing.assert_close(loss, F.cross_entropy(finite, torch.tensor([0, 2, 3]), weight, label_smoothing=0.1))


@pytest.mark.parametrize("loss", ["stablemax", "collapse-free"])
def test_the_mean_of_nothing_is_torchs(loss: str) -> None:
    for target in (torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)):
        x = torch.zeros(0, 4)
        assert math.isnan(F.cross_entropy(x, target).item())
        assert math.isnan(LOSSES[loss](x, target).item())
        assert LOSSES[loss](x, target, reduction="sum").item() == 0.0
    for name in ("logsumexp", "log_softmax", "softmax"):
        assert ROW_WISE[name](torch.zeros(0, 4, requires_grad=True)).shape[0] == 0
