"""Normalisers written out step by step, every step rounded to the dtype of the logits: to be looked at, not computed with.

`naive` is the definition as it stands in a book; `stable` subtracts the maximum first. In fp16, bf16 and fp32 they show what
each type does to the same logits: an overflow is inf, a quotient of two of them NaN, and nothing is repaired. What this project
computes with is in `stable`, `stablemax` and `sparse`, in fp32 or better.

Sparsemax is algorithm 1 of Martins and Astudillo (arXiv 1602.02068), 1.5-entmax algorithm 2 of Peters, Niculae and Martins
(arXiv 1905.05702), StableMax the definition of Prieto et al. (arXiv 2501.04697).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .transforms import symlog

Projection = Literal["softmax", "stablemax", "sparsemax", "entmax15"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
# Entries this far below the maximum have probability 0 under sparsemax (from 1 on) and 1.5-entmax (from 2 on).
_FLOOR = -4.0


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """What a form comes by on its way from (n,) logits; every tensor in their dtype.

    terms: (n,) what is divided by its sum, None for the sparse two. total: that sum, (). p, logprobs: (n,). logsumexp: (), the
    log of the normalizer, None for the sparse two.
    """

    p: Tensor
    logprobs: Tensor
    terms: Tensor | None = None
    total: Tensor | None = None
    logsumexp: Tensor | None = None


def naive(x: Tensor, projection: Projection) -> Steps:
    """(n,) logits by the definition; the log-probs are the logarithm of the probabilities."""
    if projection == "sparsemax":
        return _logged(_sparsemax(x))
    if projection == "entmax15":
        return _logged(_entmax15(x))
    terms = x.exp() if projection == "softmax" else torch.where(x >= 0, x + 1, 1 / (1 - x))
    total = terms.sum()
    p = terms / total
    return Steps(p, p.log(), terms, total, total.log())


def stable(x: Tensor, projection: Projection) -> Steps:
    """(n,) logits, the maximum subtracted; the log-probs are x - max - log sum e^(x - max), and no probability's logarithm."""
    if projection == "stablemax":
        x = symlog(x).to(x.dtype)
    top = x.max()
    gaps = x - top
    if projection == "sparsemax":
        return _logged(_sparsemax(gaps.clamp(min=_FLOOR)))
    if projection == "entmax15":
        return _logged(_entmax15(gaps.clamp(min=_FLOOR)))
    terms = gaps.exp()
    total = terms.sum()
    return Steps(terms / total, gaps - total.log(), terms, total, top + total.log())


def _logged(p: Tensor) -> Steps:
    return Steps(p, p.log())


def _sparsemax(x: Tensor) -> Tensor:
    """max(x - tau, 0), tau such that the entries above it sum to one."""
    ordered = x.sort(descending=True).values
    sums = ordered.cumsum(0)
    count = torch.arange(1, len(x) + 1, dtype=x.dtype)
    support = int((1 + count * ordered > sums).sum().clamp(min=1))
    tau = (sums[support - 1] - 1) / support
    return (x - tau).clamp(min=0)


def _entmax15(x: Tensor) -> Tensor:
    """max(x / 2 - tau, 0) squared, tau such that these sum to one."""
    z = x / 2
    ordered = z.sort(descending=True).values
    count = torch.arange(1, len(x) + 1, dtype=x.dtype)
    mean, mean_square = ordered.cumsum(0) / count, ordered.square().cumsum(0) / count
    spread = count * (mean_square - mean.square())
    taus = mean - ((1 - spread) / count).clamp(min=0).sqrt()
    support = int((taus <= ordered).sum().clamp(min=1))
    return (z - taus[support - 1]).clamp(min=0).square()
