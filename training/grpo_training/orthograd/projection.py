"""The projection itself: gradients without their parts along their weights, at their old norms. Tensors in, tensors out.

Of a sharded tensor (DTensor) the inner products and norms are the whole tensor's; each rank gets its part of the result.
Weights and gradients are first divided by a power of two near their largest entry, which is exact: however small or large they
are, no square leaves the range of the dtype.
What is projected and when is `optimizer`'s business, and so is the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_training.sharding import local, over_whole, owners


def orthogonal(weight: Tensor, grad: Tensor, *, rows: bool = False) -> Tensor:
    """The gradient without its part along the weight, at its old norm. Same shape and dtype as `grad`.

    rows: project each row (first dimension) by itself; a vector counts as one row. Unchanged where the weight is 0, where
    the gradient is 0 and where it is not finite; 0 where the gradient is parallel to the weight within rounding, because
    rescaling would turn the rounding error into a full-size step.
    """
    [result] = projected([weight], [grad], rows=rows)
    return result


def projected(weights: list[Tensor], grads: list[Tensor], *, rows: bool = False, as_one: bool = False) -> list[Tensor]:
    """This rank's part of each gradient's projection, in the gradient's dtype. A collective where weights are sharded.

    rows: as in `orthogonal`. as_one: all weights are one vector, all gradients are one vector.
    """
    groups = [owners(w, rows=rows and w.dim() > 1) for w in weights]
    ws = [_rows(w, rows) for w in weights]
    gs = [_rows(g, rows) for g in grads]

    def dots(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        """(R, 1) inner products of each pair's rows."""
        sums = over_whole([(x * y).sum(-1, keepdim=True) for x, y in zip(a, b, strict=True)], groups)
        return [torch.stack(sums).sum(0)] * len(sums) if as_one else sums

    def units(parts: list[Tensor]) -> list[Tensor]:
        """(R, 1) powers of two, at most each row's largest entry and more than half of it; 1 where that is 0 or not finite."""
        tops = over_whole([_largest(part) for part in parts], groups, largest=True)
        tops = [torch.stack(tops).amax(0)] * len(tops) if as_one else tops
        return [_power_of_two(top) for top in tops]

    kept, scales = gs, units(gs)
    gs = [g / unit for g, unit in zip(gs, scales, strict=True)]
    ws = [w / unit for w, unit in zip(ws, units(ws), strict=True)]
    ww, gg, perps = dots(ws, ws), dots(gs, gs), gs
    for _ in range(2):  # one pass leaves a cosine of 1e-2 when they are nearly parallel
        along = [wg / n.clamp(min=_tiny(n)) for wg, n in zip(dots(ws, perps), ww, strict=True)]
        perps = [g - a * w for g, a, w in zip(perps, along, ws, strict=True)]
    parts = zip(grads, kept, scales, perps, ww, gg, dots(perps, perps), strict=True)
    return [_finish(local(grad), *figures) for grad, *figures in parts]


def _rows(t: Tensor, rows: bool) -> Tensor:
    """This rank's part as (R, N) in fp32 or better; one row unless rows are asked for. R or N may be 0."""
    part = _compute(local(t))
    return part.flatten(1) if rows and t.dim() > 1 else part.reshape(1, -1)


def _largest(part: Tensor) -> Tensor:
    """(R, 1) largest magnitude of each row, 0 of an empty one."""
    return part.abs().amax(-1, keepdim=True) if part.shape[-1] else part.new_zeros(len(part), 1)


def _power_of_two(top: Tensor) -> Tensor:
    """The mantissa divided out, which is exact also of the smallest numbers; 1 for 0 and for what is not finite."""
    mantissa, _ = torch.frexp(top)
    return torch.where((top > 0) & top.isfinite(), top / (2 * mantissa), 1.0)


def _finish(grad: Tensor, kept: Tensor, scale: Tensor, perp: Tensor, ww: Tensor, gg: Tensor, pp: Tensor) -> Tensor:
    """Rescale to the old norm and the old scale, with the guards; chosen by `where`, so that a GPU need not be waited for."""
    noise = (4 * torch.finfo(gg.dtype).eps) ** 2 * gg
    scaled = torch.where(pp > noise, perp * (gg / pp.clamp(min=_tiny(pp))).sqrt(), torch.zeros_like(perp))
    usable = (ww > 0) & (gg > 0) & torch.isfinite(gg) & torch.isfinite(ww)
    return torch.where(usable, scaled * scale, kept).reshape(grad.shape).to(grad.dtype)


def _compute(t: Tensor) -> Tensor:
    """fp32 or better."""
    return t.detach() if t.dtype in (torch.float32, torch.float64) else t.detach().float()


def _tiny(t: Tensor) -> float:
    return torch.finfo(t.dtype).tiny
