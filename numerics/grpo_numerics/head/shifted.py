"""Products of bf16 rows at the speed of a bf16 product, rounded where it does not hurt.

Units for bf16 sum in fp32, but torch hands the sums out in bf16 alone: a logit of 20 is off by up to 0.06. Here a constant a
row is subtracted *inside* the sum, by one more column (the constant against ones in the weight), so that what is rounded is the
distance from that constant. It is kept near the row's largest product: what carries the probability is then close to zero,
where bf16 is finest, and a token d nats below the largest is off by 2^-9 (d + 1) at most. These errors have both signs and
nearly cancel in a sum over the vocabulary: 2e-4 nats remain of a log-sum-exp (docs/numerics.md), a hundredth of what a body in
bf16 costs. All that follows, sums included, is in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tiles import LogitTiles, RowBlock

# Nats by which a row's largest product may pass its constant before the tile is multiplied again with another.
_SLACK = 1.0


class ShiftedTiles(LogitTiles):
    """`LogitTiles` of bf16 rows and a bf16 weight, both on the CPU."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, **how: Any) -> None:
        super().__init__(hidden, weight, targets, **how)
        self._constants: dict[int, _Constants] = {}

    @staticmethod
    def take(hidden: Tensor, weight: Tensor) -> bool:
        """Whether these are rows and a weight that shifting helps."""
        return hidden.dtype == weight.dtype == torch.bfloat16 and weight.device.type == "cpu"

    def weight_rows(self, columns: slice) -> Tensor:
        """(v, D + 1): the weight of these tokens and a column of ones."""
        rows = self.weight[columns]
        return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)

    def products(self, block: RowBlock, weight_rows: Tensor) -> Tensor:
        """(M, v) as `LogitTiles.products` gives them, each rounded relative to its row's constant."""
        out = self.scratch("logits", block.height, len(weight_rows))
        if (constants := self._constants.get(block.start)) is None:
            constants = self._constants[block.start] = _Constants.of(block.hidden)
            largest = torch.mm(constants.rows, weight_rows.t()).amax(-1).float()
            constants.move(largest.isfinite().nonzero()[:, 0], largest)
        out.copy_(torch.mm(constants.rows, weight_rows.t()))
        largest = out.amax(-1)
        moved = ((largest > _SLACK) & largest.isfinite()).nonzero()[:, 0]
        if len(moved):
            constants.move(moved, largest)
            out[moved] = torch.mm(constants.rows[moved], weight_rows.t()).float()
        return out.add_(constants.shift)


@dataclass(frozen=True)
class _Constants:
    """shift: (M, 1) fp32 with bf16's precision. rows: (M, D + 1) the hidden states and, last, the shift's negative."""

    rows: Tensor
    shift: Tensor

    @classmethod
    def of(cls, hidden: Tensor) -> _Constants:
        """All constants 0."""
        return cls(torch.cat([hidden, hidden.new_zeros(len(hidden), 1)], 1), torch.zeros(len(hidden), 1))

    def move(self, which: Tensor, largest: Tensor) -> None:
        """Put the constants of some rows where their largest product is. largest: (M,) as measured from the constant."""
        moved = (self.shift[which, 0] + largest[which]).bfloat16()
        self.shift[which, 0] = moved.float()
        self.rows[which, -1] = -moved
