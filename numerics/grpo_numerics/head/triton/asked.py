"""Ids that were asked for, on their way through the kernel: it finds them in ascending order, whatever order they came in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LOWEST = torch.finfo(torch.float32).min  # stands for the -inf of a token, as `chosen.LOWEST`


@dataclass(frozen=True)
class Asked:
    """ids: (M, j) int64 as they came, -1 for none. ascending: (M, j) int32. found: (M, j) fp32, where the kernel puts the
    logits of those, of an id that comes twice at its first place."""

    ids: Tensor
    ascending: Tensor
    found: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> Asked:
        """ids (M, j), any integers."""
        ascending = ids.int().sort(dim=-1).values.contiguous()
        return cls(ids.long(), ascending, torch.full_like(ascending, -math.inf, dtype=torch.float32))

    def begins(self, vocab: int, tile: int) -> Tensor:
        """(M, tiles) int32: where in a row the ids of each tile begin."""
        starts = torch.arange(0, vocab, tile, dtype=torch.int32, device=self.ids.device)
        return torch.searchsorted(self.ascending, starts.expand(len(self.ids), -1).contiguous(), out_int32=True)

    def others(self, targets: Tensor) -> Tensor:
        """(M, j) ids, ascending, with -1 in the place of repetitions and of the row's target. targets: (M,)."""
        none = self.ascending == targets[:, None]
        none[:, 1:] |= self.ascending[:, 1:] == self.ascending[:, :-1]
        return self.ascending.masked_fill(none, -1)

    def logits_of_others(self, targets: Tensor) -> Tensor:
        """(M, j) logits of `others`, -inf where that is -1."""
        return self.logits().masked_fill(self.others(targets) < 0, -math.inf)

    def logits(self) -> Tensor:
        """(M, j) logits of `ascending`."""
        return self.found.masked_fill(self.found <= _LOWEST, -math.inf)

    def logits_as_asked(self, targets: Tensor, target: Tensor) -> Tensor:
        """(M, j) logits of `ids`, -inf for the id -1. target: (M,) the targets' logits."""
        first = torch.searchsorted(self.ascending, self.ids.int())
        return torch.where(self.ids == targets[:, None], target[:, None], self.logits().gather(1, first))
