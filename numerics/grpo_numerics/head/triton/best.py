"""Tokens as sortable numbers: an int64 that holds a logit and an id, so that one `topk` settles both value and ties.

The upper half is the logit's bits, turned so that integers sort as the logits do; the lower half the id, turned round, so
that of equal logits the smaller id is the larger key. The same keys as `chosen.keys_of` makes in a kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOWEST = torch.finfo(torch.float32).min  # stands for the -inf of a token, as `chosen.LOWEST`
_TURN = 0x7FFFFFFF
EMPTY = (0x007FFFFF - (1 << 31)) << 32  # the key of -inf itself, which is no token's


def keys_of(logits: Tensor, ids: Tensor) -> Tensor:
    """int64 keys of tokens with these fp32 logits and integer ids, of one shape."""
    bits = (logits + 0.0).clamp(min=_LOWEST).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & _TURN)
    return (ordered.long() << 32) | (_TURN - ids.long())


def logits_of(keys: Tensor) -> Tensor:
    """The fp32 logits of these keys; -inf where there is no token."""
    ordered = (keys >> 32).int()
    logits = (ordered ^ ((ordered >> 31) & _TURN)).view(torch.float32)
    return logits.masked_fill(logits <= _LOWEST, -math.inf)


def ids_of(keys: Tensor, vocab: int) -> Tensor:
    """The int64 ids of these keys; in rows without a distribution, whose lists stay empty, any."""
    return (_TURN - (keys & _TURN)).clamp(max=vocab - 1)


class Best:
    """The k best of `rows` rows whose tokens arrive in any order, each once."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.keys = torch.full((rows, k), EMPTY, dtype=torch.int64, device=device)

    def take(self, keys: Tensor) -> Tensor:
        """Take in (R, n) tokens. Returns the (R, k + n) logits of those that are not, or no longer, among the best."""
        every = torch.cat([self.keys, keys], 1)
        self.keys = every.topk(self.keys.shape[1], dim=-1).values
        return logits_of(every.masked_fill(every >= self.keys[:, -1:], EMPTY))

    def floor(self) -> Tensor:
        """(R,) fp32: what a token must exceed to be taken, if its id is larger than all before it."""
        ordered = (self.keys[:, -1] >> 32).int()
        return (ordered ^ ((ordered >> 31) & _TURN)).view(torch.float32)
