"""All products of a mixture's experts as one Triton launch: as `kernel`, but each row block has a matrix of its own."""

# pyright: reportMissingParameterType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernel import blocks_on, launch_options, tile_sums


@triton.jit
def grouped_kernel(
    x,
    weight,
    bias,
    experts,
    out,
    blocks_m,
    outputs,
    inputs,
    output_step,
    input_step,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """out (blocks_m BLOCK_M, outputs): rows of x (., inputs) times the matrix of their block's expert, plus its bias.

    experts: (blocks_m,), -1 for a block that is nobody's, whose rows of `out` become 0. weight: (E, outputs, inputs) or its
    transpose in memory, by the steps from one output and one input to the next; bias: (E, outputs) or None. Grid and sums as
    `linear_kernel`'s.
    """
    blocks_n = tl.cdiv(outputs, BLOCK_N)
    program = tl.program_id(0)
    in_group = GROUP * blocks_n
    first = (program // in_group) * GROUP
    height = tl.minimum(blocks_m - first, GROUP)
    block_m = first + (program % in_group) % height
    block_n = (program % in_group) // height
    expert = tl.load(experts + block_m).to(tl.int64)
    row = (block_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    held_column = tl.minimum(column, outputs - 1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    matrix = weight + tl.maximum(expert, 0) * outputs * inputs
    left = x + row[:, None] * inputs + k[None, :]
    right = matrix + held_column[None, :] * output_step + k[:, None].to(tl.int64) * input_step
    there = tl.where(expert < 0, 0, inputs)
    sums = tile_sums(left, right, there, input_step, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    if bias is not None:
        sums += tl.where(expert < 0, 0.0, tl.load(bias + tl.maximum(expert, 0) * outputs + held_column).to(tl.float32))[
            None, :
        ]
    place = out + row[:, None] * outputs + column[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), mask=(column < outputs)[None, :])


def grouped_by_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, experts: Tensor, *, transposed: bool) -> Tensor:
    """See `grouped.grouped_linear`; experts: (T,) int32, whose each block of `blocks_on(weight).m` rows is."""
    flat = x.contiguous()
    inputs, outputs = weight.shape[1:] if transposed else weight.shape[:0:-1]
    blocks = blocks_on(weight)
    out = flat.new_empty(len(flat), outputs)
    steps = (1, outputs) if transposed else (inputs, 1)
    grid = (len(experts) * triton.cdiv(outputs, blocks.n),)
    with torch.cuda.device_of(flat):
        grouped_kernel[grid](
            flat, weight, bias, experts, out, len(experts), outputs, inputs, *steps, **launch_options(blocks, inputs)
        )
    return out
