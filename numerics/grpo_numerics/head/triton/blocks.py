"""How large the blocks of the kernels are: a value for each dtype and kind of GPU, reasoned out in docs/kernels.md.

Nothing here looks at the number of rows, so that a row's bits do not depend on how many others are scored with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

Precision = Literal["ieee", "tf32"]

# Rows of one launch: their hidden states stay in the L2 cache while the vocabulary goes by, and the partial sums and
# the gradient's scratch keep one size however many rows there are.
ROWS = 4096
# Vocabulary of one launch of the backward pass; the scratch is ROWS x SLICE gradients and SLICE x D sums.
SLICE = 4096
_LARGEST_TILE = 1024
_ENOUGH_TILES = 128  # about the number of multiprocessors: one row block alone can then read at full bandwidth
_LARGE_SHARED_MEMORY = frozenset({9, 10})  # compute capabilities (major) with 227 KiB a program, and wgmma or its heir


@dataclass(frozen=True, slots=True)
class Blocks:
    """Shape of a program's matrix product and how it is run. precision: of fp32 operands."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    precision: Precision = "ieee"


def product_blocks(
    dtype: torch.dtype, capability: tuple[int, int], *, elaborate: bool, crowded: bool, best: bool = False
) -> Blocks:
    """For hidden times weight in scoring, operands of `dtype` as stored, on a GPU of this compute capability.

    elaborate: a soft-cap follows, whose elementwise arithmetic wants registers that a wide block takes. crowded: StableMax,
    lists of the best or asked ids do, which want still more. best: lists of the best are among them.
    """
    if dtype == torch.float32:
        return Blocks(64, 64, 16, warps=8 if best else 4, stages=2)
    if capability[0] in _LARGE_SHARED_MEMORY:
        return Blocks(128, 64 if crowded else 128 if elaborate else 256, 64, warps=8, stages=3)
    return Blocks(128, 64 if crowded else 128, 32, warps=8, stages=4)


def gradient_blocks(dtype: torch.dtype, capability: tuple[int, int], *, elaborate: bool) -> Blocks:
    """For hidden times weight in the backward pass, where the whole block is turned into its gradient at once."""
    blocks = product_blocks(dtype, capability, elaborate=elaborate, crowded=False)
    return blocks if dtype == torch.float32 else replace(blocks, n=64 if elaborate else 128)


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what the logits' gradient of inputs of `dtype` meets the matrix units.

    bf16 for bf16, whose range it shares. fp32 for fp16, rounded to tf32: tiny probabilities are 0 in fp16, and an
    fp16 weight is exact in tf32.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def accumulate_blocks(dtype: torch.dtype, capability: tuple[int, int]) -> Blocks:
    """For the products of the logits' gradient with weight and hidden states of `dtype`."""
    if dtype == torch.float16:
        return Blocks(128, 128, 32, warps=8, stages=3 if capability[0] in _LARGE_SHARED_MEMORY else 2, precision="tf32")
    return gradient_blocks(dtype, capability, elaborate=False)


def vocabulary_tile(vocab: int, block_n: int, *, listed: bool = False) -> int:
    """Tokens that one program of the first stage goes through: 1024, less where that would leave a GPU idle. listed: twice
    as many, because a list is filled anew in each."""
    tile = 2 * _LARGEST_TILE if listed else _LARGEST_TILE
    while tile > block_n and vocab < tile * _ENOUGH_TILES:
        tile //= 2
    return tile
