"""A linear layer as products of one height each.

A BLAS chooses its kernel, and so the order of its sums, by the shape of a product. At one shape a row depends neither on its
place nor on the other rows (seen with MKL, oneDNN and OpenBLAS). So rows are taken a slab at a time, the last one filled up
with zeros: a row meets the same kernel whatever the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

# Rows of a slab: enough for a product's full speed, few enough for a small request to stay cheap. Every slab begins on a
# cache line whatever the width of the layer.
CPU_SLAB = 256
GPU_SLAB = 2048


def linear_in_slabs(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, rows: int = CPU_SLAB) -> Tensor:
    """x (..., K) times weight (N, K), plus bias (N,): (..., N) as `torch.nn.functional.linear`, `rows` rows a product."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    out = flat.new_empty(len(flat), len(weight))
    for start in range(0, len(flat), rows):
        slab = flat[start : start + rows]
        held = len(slab)
        if held < rows:
            slab = torch.cat([slab, slab.new_zeros(rows - held, slab.shape[1])])
        out[start : start + held] = linear(slab, weight, bias)[:held]
    return out.view(*x.shape[:-1], len(weight))
