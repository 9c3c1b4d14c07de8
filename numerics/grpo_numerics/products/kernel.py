"""A linear layer as one Triton kernel: every program computes a tile of the output from its rows and columns alone.

The tile's shape follows from dtype and GPU, never from the number of rows; the sum over K runs in one fixed order in fp32,
without split-K and without atomics. So a row's bits depend on the row and the weight. A cuBLAS kernel chosen for the shape
may be faster: this is for layers whose own product changes its bits with the number of rows.
"""

# Triton compiles these from source: their arguments are tiles and pointers, for which it has no Python types.
# pyright: reportMissingParameterType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import ProductBlocks, product_blocks

# Row blocks that run side by side over the same columns: their share of x and weight stays in the L2 cache.
GROUP = 8


@triton.jit
def tile_sums(
    left,
    right,
    inputs,
    right_step,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) fp32: the sums over `inputs` of left (BLOCK_M, BLOCK_K) times right (BLOCK_K, BLOCK_N), pointers to
    the first of them. right_step: numbers from one input to the next in `right`; in `left` they lie side by side."""
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        if EVEN_K:
            a, b = tl.load(left), tl.load(right)
        else:
            inside = start + k < inputs
            a = tl.load(left, mask=inside[None, :], other=0.0)
            b = tl.load(right, mask=inside[:, None], other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
        left += BLOCK_K
        right += BLOCK_K * right_step
    return sums


@triton.jit
def linear_kernel(
    x,
    weight,
    bias,
    out,
    rows,
    outputs,
    inputs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """out (rows, outputs) = x (rows, inputs) times weight (outputs, inputs), plus bias (outputs,) or None.

    fp32 sums, IEEE products of fp32 operands, rounded to out's dtype once, after the bias. Grid: all tiles, in groups of
    GROUP row blocks. Rows and columns beyond the edge are read from the last one, which costs no mask in the loop, and not
    written.
    """
    blocks_m = tl.cdiv(rows, BLOCK_M)
    blocks_n = tl.cdiv(outputs, BLOCK_N)
    program = tl.program_id(0)
    in_group = GROUP * blocks_n
    first = (program // in_group) * GROUP
    height = tl.minimum(blocks_m - first, GROUP)
    block_m = first + (program % in_group) % height
    block_n = (program % in_group) // height
    row = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    held_row = tl.minimum(row, rows - 1).to(tl.int64)
    held_column = tl.minimum(column, outputs - 1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    left = x + held_row[:, None] * inputs + k[None, :]
    right = weight + held_column[None, :] * inputs + k[:, None]
    sums = tile_sums(left, right, inputs, 1, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    if bias is not None:
        sums += tl.load(bias + held_column).to(tl.float32)[None, :]
    place = out + row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < outputs)[None, :])


def linear_by_kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K), plus bias (N,): (..., N) in x's dtype. See `choice.runs_kernel` for what it takes."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    rows, (outputs, inputs) = len(flat), weight.shape
    out = flat.new_empty(rows, outputs)
    if not rows:
        return out.view(*x.shape[:-1], outputs)
    blocks = blocks_on(weight)
    grid = (triton.cdiv(rows, blocks.m) * triton.cdiv(outputs, blocks.n),)
    with torch.cuda.device_of(flat):
        linear_kernel[grid](flat, weight, bias, out, rows, outputs, inputs, **launch_options(blocks, inputs))
    return out.view(*x.shape[:-1], outputs)


def blocks_on(weight: Tensor) -> ProductBlocks:
    """Of a product with this weight, on its device."""
    return product_blocks(weight.dtype, torch.cuda.get_device_capability(weight.device) if weight.is_cuda else (8, 0))


def launch_options(blocks: ProductBlocks, inputs: int) -> dict[str, Any]:
    """The kernel's fixed arguments for K = `inputs`, and how it is run."""
    return {
        "BLOCK_M": blocks.m,
        "BLOCK_N": blocks.n,
        "BLOCK_K": blocks.k,
        "GROUP": GROUP,
        "EVEN_K": inputs % blocks.k == 0,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        "enable_fp_fusion": True,
    }
