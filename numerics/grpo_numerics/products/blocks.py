"""How large a tile of the fixed product is: one value for each dtype and kind of GPU, whatever the number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_LARGE_SHARED_MEMORY = frozenset({9, 10})  # compute capabilities (major) with 227 KiB a program, and wgmma or its heir


@dataclass(frozen=True, slots=True)
class ProductBlocks:
    """A tile of (m, n) outputs, k inputs at a time; warps and stages of the software pipeline."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def product_blocks(dtype: torch.dtype, capability: tuple[int, int]) -> ProductBlocks:
    """For operands of `dtype` on a GPU of this compute capability."""
    if dtype == torch.float32:
        return ProductBlocks(64, 64, 32, warps=4, stages=2)
    if capability[0] in _LARGE_SHARED_MEMORY:
        return ProductBlocks(128, 256, 64, warps=8, stages=3)
    return ProductBlocks(128, 128, 32, warps=8, stages=4)
