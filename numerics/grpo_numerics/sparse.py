"""Sparsemax and 1.5-entmax: normalizers that give exact zeros, by the `entmax` package with its traps guarded.

The projections are the package's. Around them: half precision is computed in fp32 (its sort and cumulative sums give
NaN in fp16), a -inf is a masked entry (there NaN), a slice of nothing but -inf is NaN (there an index error), `dim` may
be any axis, and the losses honour ignore_index whatever its sign.

Martins and Astudillo 2016 (arXiv 1602.02068); Peters, Niculae and Martins 2019 (arXiv 1905.05702). The package is an
optional dependency and is imported when a function here is first called.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch
from torch import Tensor

from .transforms import upcast, without_ignored

# Entries this far below the maximum have probability exactly 0 under both (sparsemax: from 1 on, entmax: from 2 on).
# Lifting them up to here changes nothing and keeps -inf, and the squares of huge gaps, out of the cumulative sums.
_FLOOR = -4.0


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    """Euclidean projection of x onto the simplex over `dim`; fp32, or fp64 for fp64 input. An all -inf slice is NaN."""
    return _project("sparsemax", x, dim)


def entmax15(x: Tensor, dim: int = -1) -> Tensor:
    """1.5-entmax over `dim`, between softmax and sparsemax; fp32, or fp64 for fp64 input. An all -inf slice is NaN."""
    return _project("entmax15", x, dim)


def sparsemax_loss(x: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Fenchel-Young loss of `sparsemax`: (..., C) scores, (...,) class ids. Gradient: sparsemax(x) - onehot(target)."""
    x = without_ignored(x, target, ignore_index, x.ndim - 1)
    p = sparsemax(x.detach())
    return _fenchel_young((1.0 - p.square().sum(-1)) / 2, p, x, target, ignore_index, reduction)


def entmax15_loss(x: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Fenchel-Young loss of `entmax15`: (..., C) scores, (...,) class ids. Gradient: entmax15(x) - onehot(target)."""
    x = without_ignored(x, target, ignore_index, x.ndim - 1)
    p = entmax15(x.detach())
    return _fenchel_young((1.0 - (p * p.sqrt()).sum(-1)) / 0.75, p, x, target, ignore_index, reduction)


def _project(name: Literal["sparsemax", "entmax15"], x: Tensor, dim: int) -> Tensor:
    try:
        package: Any = importlib.import_module("entmax")
    except ImportError as error:
        raise ImportError(f"{name} needs the entmax package: pip install 'entmax>=1.3'") from error
    x = upcast(x).movedim(dim, -1)
    gaps = x - x.detach().amax(-1, keepdim=True)
    void = ~gaps.detach().amax(-1, keepdim=True).isfinite()  # NaN where the maximum was -inf, inf or NaN
    p: Tensor = getattr(package, name)(gaps.masked_fill(void, 0.0).clamp(min=_FLOOR), dim=-1)
    return p.masked_fill(void, torch.nan).movedim(-1, dim)


def _fenchel_young(omega: Tensor, p: Tensor, x: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Omega(p) + <p, x> - x_target, whose gradient at the optimal p is that at constant p. A masked target: +inf.

    The mean is over the targets that are not ignored, as in torch's cross-entropy: NaN where there is none.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if target.shape != x.shape[:-1]:
        raise ValueError(f"target must have shape {tuple(x.shape[:-1])}, got {tuple(target.shape)}")
    x = upcast(x)
    gaps = x - x.detach().amax(-1, keepdim=True)
    kept = target != ignore_index
    chosen = gaps.gather(-1, target.masked_fill(~kept, 0).unsqueeze(-1)).squeeze(-1)
    expected = (p * gaps.masked_fill(p == 0, 0.0)).sum(-1)
    loss = (omega + expected - chosen).masked_fill(~kept, 0.0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / kept.sum()
