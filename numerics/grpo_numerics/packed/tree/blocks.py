"""How large the blocks of the tree kernels are, by dtype, head size and kind of GPU; reasoned out in docs/kernels.md.

Nothing here looks at the number of rows, so that a row's bits do not depend on how many others there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_SMALLEST = 16  # side of a matrix product
_LARGE_SHARED_MEMORY = frozenset({9, 10})  # compute capabilities (major) with 227 KiB a program


@dataclass(frozen=True, slots=True)
class Blocks:
    """m: (row, head) pairs; n: keys."""

    m: int
    n: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class HeadSize:
    """A head of `dim` numbers as the matrix units take it: `whole` and then `rest`, each in a block of a power of two."""

    whole: int
    rest: int

    @classmethod
    def of(cls, dim: int) -> HeadSize:
        """192 = 128 + 64, 96 = 64 + 32: two products where one block would be a quarter empty or more."""
        block = block_of(dim)
        if block in (dim, _SMALLEST) or block - dim < block // 4:
            return cls(dim, 0)
        return cls(block // 2, dim - block // 2)


def block_of(dim: int) -> int:
    """The power of two, from 16 on, that holds `dim`."""
    return max(_SMALLEST, 1 << (dim - 1).bit_length())


def forward_blocks(dtype: torch.dtype, dim: int, dim_v: int, capability: tuple[int, int]) -> Blocks:
    """For scores and output, heads of `dim` (queries, keys) and `dim_v` (values)."""
    wide = _is_wide(dim, dim_v)
    if dtype == torch.float32:
        return Blocks(64, 16, warps=8, stages=1)
    if capability[0] in _LARGE_SHARED_MEMORY:
        return Blocks(128, 32 if block_of(dim_v) > 128 else 64, warps=8, stages=2 if wide else 3)
    return Blocks(64 if wide else 128, 32, warps=8, stages=2)


def backward_blocks(dtype: torch.dtype, dim: int, dim_v: int, capability: tuple[int, int]) -> Blocks:
    """For all gradients; n is also the keys of a program that owns keys."""
    wide = _is_wide(dim, dim_v)
    if dtype == torch.float32:
        return Blocks(16, 16, warps=8 if wide else 4, stages=1)
    if wide:
        return Blocks(32, 32, warps=8, stages=1)
    if capability[0] in _LARGE_SHARED_MEMORY:
        return Blocks(64 if max(dim, dim_v) <= 64 else 32, 64, warps=8, stages=2)
    return Blocks(64, 32, warps=8, stages=1)


def _is_wide(dim: int, dim_v: int) -> bool:
    return max(block_of(dim), block_of(dim_v)) > 128
