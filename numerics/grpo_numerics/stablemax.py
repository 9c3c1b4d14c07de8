"""StableMax: softmax with a polynomial tail in place of the exponential one.

    s(x) = x + 1 for x >= 0, 1 / (1 - x) for x < 0        log s(x) = symlog(x) = sign(x) log1p|x|
    StableMax(x) = s(x) / sum s = softmax(symlog(x))       LogStableMax(x) = log_softmax(symlog(x))

Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv 2501.04697. Since it is a softmax of
transformed logits, everything that takes logits takes StableMax by transforming them first, and the whole contract of
`torch.nn.functional.cross_entropy` comes with it. Not shift-invariant: adding a constant to the logits changes it.

It does not patch torch: the scoped patch of `F.cross_entropy` belongs to training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Bound at import, so that a scoped patch which puts StableMax in place of F.cross_entropy does not call itself.
from torch.nn.functional import cross_entropy as _cross_entropy

from .stable import log_softmax, softmax
from .transforms import symlog as symlog
from .transforms import without_ignored


def stablemax(x: Tensor, dim: int = -1) -> Tensor:
    """StableMax probabilities over `dim`; fp32, or fp64 for fp64 input. An all -inf slice is NaN, and it alone."""
    return softmax(symlog(x), dim)


def log_stablemax(x: Tensor, dim: int = -1) -> Tensor:
    """Log of `stablemax`, without forming it; same dtypes."""
    return log_softmax(symlog(x), dim)


def stablemax_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy under StableMax, with the arguments, shapes and errors of `torch.nn.functional.cross_entropy`.

    input: (C,), (N, C) or (N, C, d1, ...) logits; target: class indices or probabilities. The loss is fp32 (fp64 for
    fp64 input): in bf16 it could not move. Gradient: d/dx_j = (p_j - 1[j = target]) / (1 + |x_j|). Beyond torch's: an
    ignored position has gradient 0 whatever its logits, and a class of probability 0 may be masked with -inf.
    """
    logits = symlog(without_ignored(input, target, ignore_index, 0 if input.ndim == 1 else 1))
    if target.is_floating_point() and label_smoothing == 0.0 and target.shape == logits.shape:
        logits = logits.masked_fill((target == 0) & (logits == -math.inf), torch.finfo(logits.dtype).min / 4)
    return _cross_entropy(
        logits,
        target.to(logits.dtype) if target.is_floating_point() else target,
        weight=None if weight is None else weight.to(logits.dtype),
        size_average=size_average,
        ignore_index=ignore_index,
        reduce=reduce,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
