"""What the gradient of the fused head is made of: the figures of its rows, and sums over tiles computed anew.

With y the transformed logits of a row, p = softmax(y), t the target and H the entropy:

    d log p_t / dy_j = 1[j = t] - p_j          dH / dy_j = -p_j (log p_j + H)

and then back through symlog, temperature, soft-cap, scale to the products hidden times weight. At the target
1 - p_t = -expm1(log p_t), which keeps its precision where p_t rounds to 1.

The autograd function around it is in `autograd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .online import FAR_BELOW
from .tiles import LogitTiles, RowBlock, padded, put_where_inside


class RowFigures(NamedTuple):
    """What the gradient needs to know of each row, (R,); of a block (M, 1), with zeros in the padding."""

    of_logprob: Tensor  # incoming gradients
    of_entropy: Tensor
    logprob: Tensor
    logsumexp: Tensor
    entropy: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> RowFigures:
        """The same change made to each."""
        return RowFigures(
            change(self.of_logprob),
            change(self.of_entropy),
            change(self.logprob),
            change(self.logsumexp),
            None if self.entropy is None else change(self.entropy),
        )

    def at_target(self) -> Tensor:
        """The gradient at the target's own transformed logit, in the figures' shape."""
        at_target = -self.of_logprob * torch.expm1(self.logprob)
        if self.entropy is None:
            return at_target
        surprise = self.of_entropy * (self.logprob.clamp(min=FAR_BELOW) + self.entropy)
        return at_target - self.logprob.exp() * surprise

    def of(self, block: RowBlock) -> RowFigures:
        """Those of one block out of those of all rows."""
        mine = self.map(lambda figure: padded(figure[block.start : block.stop], block.height)[:, None])
        # A probability of 0 in the padding: at log-sum-exp 0 a large bias would overflow there, and inf * 0 is NaN.
        logsumexp = padded(self.logsumexp[block.start : block.stop], block.height, math.inf)[:, None]
        return mine._replace(logsumexp=logsumexp)


class HeadGradient:
    """Accumulates the gradients of those of (hidden, weight, bias) that are needed; the others stay None.

    hidden: (R, D) and bias: (V,) in the compute dtype; weight: (V, D) in the weight's own.
    """

    def __init__(self, tiles: LogitTiles, needs: tuple[bool, bool, bool]) -> None:
        vocab, dim = tiles.weight.shape
        like = torch.empty(0, dtype=tiles.dtype, device=tiles.weight.device)
        self.tiles = tiles
        self.hidden = like.new_zeros(tiles.blocks[-1].stop, dim) if needs[0] else None
        self.weight = torch.empty_like(tiles.weight) if needs[1] else None
        self.bias = like.new_zeros(vocab) if needs[2] else None

    def accumulate(self, figures: Sequence[Any]) -> None:
        """One pass over all tiles. figures: of each row block, as `logits_gradient` takes them."""
        tiles = self.tiles
        for columns in tiles.columns():
            weight_rows = tiles.weight_rows(columns)
            full_rows = tiles.upcast("full weight", weight_rows)
            d_weight = torch.zeros_like(full_rows) if self.weight is not None else None
            for block, block_figures in zip(tiles.blocks, figures, strict=True):
                d_logits = self.logits_gradient(block, columns, weight_rows, block_figures)
                if self.hidden is not None:
                    self.hidden[block.start : block.stop] += (d_logits @ full_rows)[: block.rows]
                if d_weight is not None:
                    d_weight.addmm_(d_logits.t(), tiles.upcast("hidden", block.hidden))
                if self.bias is not None:
                    self.bias[columns] += d_logits.sum(0)
            if self.weight is not None and d_weight is not None:
                self.weight[columns] = d_weight

    def logits_gradient(self, block: RowBlock, columns: slice, weight_rows: Tensor, figures: RowFigures) -> Tensor:
        """(M, v) gradient at the products of hidden and weight (which is the bias' own), in scratch."""
        tiles = self.tiles
        products = tiles.products(block, weight_rows)
        bias = None if tiles.bias is None else tiles.bias[columns]
        slope = tiles.slope(products, bias, block.temperature)
        log_p = tiles.transform_(products, bias, block.temperature).sub_(figures.logsumexp)
        at_target = figures.at_target()
        if figures.entropy is None:
            gradient = log_p.exp_().mul_(-figures.of_logprob)
        else:
            p = torch.exp(log_p, out=tiles.scratch("spare", *log_p.shape))
            gradient = log_p.clamp_(min=FAR_BELOW).add_(figures.entropy).mul_(figures.of_entropy)
            gradient.add_(figures.of_logprob).mul_(p).neg_()
        local = block.targets[:, None] - columns.start
        put_where_inside(gradient, local, at_target)
        return gradient.mul_(slope)
