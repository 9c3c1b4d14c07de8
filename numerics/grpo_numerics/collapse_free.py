"""Cross-entropy that goes on learning where the usual one is exactly zero.

Softmax collapse: once the target leads by 17 nats in fp32, the sum over all classes rounds to the target's own term,
the loss is 0 and so is the gradient p - 1, although the loss in real numbers is not (Prieto et al., arXiv 2501.04697).
Here the leading class is taken out of the sum before anything is added to it:

    S = sum over j != m of e^(x_j - x_m), m the leading class
    log p_j = (x_j - x_m) - log1p(S)

log1p(S) keeps its relative precision as far as S itself does not underflow (a lead of 100 nats in fp32, 740 in fp64),
and its derivative S / (1 + S) is 1 - p_m without the subtraction. Under StableMax the same, of symlog(x).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from .transforms import Normalizer, check_normalizer, symlog, upcast, without_ignored


def collapse_free_log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """log_softmax over `dim` whose every entry has full relative precision; fp32, or fp64 for fp64 input.

    An all -inf slice is NaN, and it alone; a -inf entry has log-prob -inf and gradient 0. What is NaN and then masked has
    gradient 0.
    """
    x = upcast(x)
    top, index = x.max(dim, keepdim=True)
    void = ~top.isfinite()
    # The leader's own gap is a constant 0. Left to autograd, its +1 to x_m and its -1 to the maximum would be summed
    # with the tiny S / (1 + S) in between, and round it away.
    gaps = (x - top).masked_fill(void, 0.0).scatter(dim, index, 0.0)
    rest = gaps.exp().scatter(dim, index, 0.0).sum(dim, keepdim=True)
    return (gaps - torch.log1p(rest)).masked_fill(void, torch.nan)


def collapse_free_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    normalizer: Normalizer = "softmax",
) -> Tensor:
    """`torch.nn.functional.cross_entropy` without collapse: same arguments, shapes and results where that is not zero.

    input: (C,), (N, C) or (N, C, d1, ...) logits. target: class indices (or without the class dimension), or
    probabilities of input's shape. weight: (C,). The loss is fp32, or fp64 for fp64 input. normalizer: "stablemax" for
    the same under StableMax. Raises ValueError for an unknown reduction, normalizer or a smoothing outside [0, 1].
    """
    check_normalizer(normalizer)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
    classes = 0 if input.ndim == 1 else 1
    logits = without_ignored(input, target, ignore_index, classes)
    log_p = collapse_free_log_softmax(symlog(logits) if normalizer == "stablemax" else logits, classes)
    weight = None if weight is None else weight.to(log_p.dtype)
    if target.is_floating_point():
        return _of_probabilities(log_p, target, weight, reduction, label_smoothing, classes)
    if target.shape != log_p.shape[:classes] + log_p.shape[classes + 1 :]:
        raise ValueError(f"target of shape {tuple(target.shape)} does not go with input of {tuple(input.shape)}")
    loss = nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction=reduction)
    if label_smoothing == 0.0:
        return loss
    kept = target != ignore_index
    smooth = -_weighted(log_p, weight, classes).sum(classes).masked_fill(~kept, 0.0)
    if reduction == "sum":
        smooth = smooth.sum()
    elif reduction == "mean":
        counts = (
            kept.to(log_p.dtype) if weight is None else weight[target.masked_fill(~kept, 0)].masked_fill(~kept, 0.0)
        )
        smooth = smooth.sum() / counts.sum()
    return (1.0 - label_smoothing) * loss + label_smoothing / log_p.shape[classes] * smooth


def _of_probabilities(
    log_p: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float, classes: int
) -> Tensor:
    """Cross-entropy against probabilities; the mean is over positions, whatever the weights, as torch has it."""
    if target.shape != log_p.shape:
        raise ValueError(
            f"target probabilities must have input's shape {tuple(log_p.shape)}, got {tuple(target.shape)}"
        )
    target = target.to(log_p.dtype) * (1.0 - label_smoothing) + label_smoothing / log_p.shape[classes]
    log_p = log_p.masked_fill((target == 0) & (log_p == -torch.inf), 0.0)  # a masked class that is not wanted: 0 * -inf
    loss = -(target * _weighted(log_p, weight, classes)).sum(classes)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()


def _weighted(log_p: Tensor, weight: Tensor | None, classes: int) -> Tensor:
    """log_p with each class' entries times its weight (C,); 0 where that is 0, also of a masked class."""
    if weight is None:
        return log_p
    weight = weight.reshape([-1 if axis == classes else 1 for axis in range(log_p.ndim)])
    return log_p.masked_fill(weight == 0, 0.0) * weight
