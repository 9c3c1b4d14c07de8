"""The kernels of the backward pass behind the interface of `head.gradient.HeadGradient`: loops, scratch, arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..gradient import HeadGradient, RowFigures
from ..tiles import RowBlock
from . import backward
from .blocks import SLICE, Blocks, accumulate_blocks, gradient_blocks, gradient_dtype
from .tiles import TritonTiles, block_options, launch, product_options, temperature_of


class TritonGradient(HeadGradient):
    """Gradients of those of (hidden, weight, bias) that are needed, of a head that the kernels take.

    Memory beside inputs and results: (rows of a block) x SLICE gradients, and past one block of rows SLICE x D fp32 sums.
    """

    def __init__(self, tiles: TritonTiles, needs: tuple[bool, bool, bool]) -> None:
        super().__init__(tiles, needs)
        dtype = tiles.weight.dtype
        self._triton = tiles
        self._height = tiles.blocks[0].height
        self._blocks = gradient_blocks(dtype, tiles.capability, elaborate=tiles.elaborate)
        self._accumulate_blocks = accumulate_blocks(dtype, tiles.capability)
        self._scratch = tiles.weight.new_empty(self._height, SLICE, dtype=gradient_dtype(dtype))

    def accumulate(self, figures: Sequence[RowFigures]) -> None:
        """One pass over all tiles. figures: of each row block."""
        tiles = self._triton
        for start in range(0, tiles.vocab, SLICE):
            columns = slice(start, min(start + SLICE, tiles.vocab))
            width = columns.stop - start
            weight = tiles.weight[columns]
            d_weight = self._weight_sums(columns)
            for block, of_rows in zip(tiles.blocks, figures, strict=True):
                d_logits = self._logits_gradient(block, columns, of_rows)[:, :width]
                if self.hidden is not None:
                    d_hidden = self.hidden[block.start : block.stop]
                    self._multiply(d_hidden, d_logits[: block.rows], weight, add=start > 0)
                if d_weight is not None:
                    self._multiply(d_weight, d_logits.t(), block.hidden.contiguous(), add=block.start > 0)
            if self.weight is not None and d_weight is not None and len(tiles.blocks) > 1:
                self.weight[columns] = d_weight

    def _weight_sums(self, columns: slice) -> Tensor | None:
        """Where the gradient of these weights is summed: in place if one product is all of it, else in fp32 scratch."""
        if self.weight is None or len(self.tiles.blocks) == 1:
            return None if self.weight is None else self.weight[columns]
        return torch.empty_like(self.weight[columns], dtype=self.tiles.dtype)

    def _logits_gradient(self, block: RowBlock, columns: slice, figures: RowFigures) -> Tensor:
        """(M, SLICE) gradient at the products of hidden and these weights, in scratch; the bias' is added on the way."""
        tiles, blocks, with_entropy = self._triton, self._blocks, figures.entropy is not None
        width = columns.stop - columns.start
        row_blocks = triton.cdiv(block.height, blocks.m)
        of_bias = None if self.bias is None else self.bias.new_empty(row_blocks, width)
        launch(
            backward.logits_gradient_kernel,
            (row_blocks, triton.cdiv(width, blocks.n)),
            block.hidden.contiguous(),
            tiles.weight[columns],
            None if tiles.bias is None else tiles.bias[columns],
            temperature_of(block),
            block.targets - columns.start,
            figures.at_target(),
            figures.of_logprob,
            figures.of_entropy if with_entropy else None,
            figures.logsumexp,
            figures.entropy,
            self._scratch,
            of_bias,
            block.height,
            width,
            tiles.weight.shape[1],
            SLICE,
            **tiles.head_options(),
            **product_options(blocks, tiles.weight.shape[1]),
        )
        if self.bias is not None and of_bias is not None:
            self.bias[columns] += of_bias.sum(0)
        return self._scratch[: block.height]

    def _multiply(self, out: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
        """out (m, n) = or += left (m, k) times right (k, n); right and out contiguous."""
        blocks: Blocks = self._accumulate_blocks
        (height, width), depth = out.shape, len(right)
        grid = (triton.cdiv(height, blocks.m), triton.cdiv(width, blocks.n))
        shapes = height, width, depth, *left.stride()
        launch(backward.accumulate_kernel, grid, left, right, out, *shapes, ADD=add, **block_options(blocks))
