"""One row of logits under any of the four normalizers: probabilities, log-probs, entropy and loss, as the rest computes them.

The same question put to `stable`, `stablemax` and `sparse`, for who wants to see them side by side. Softmax and StableMax have
the cross-entropy for their loss, the sparse two their Fenchel-Young loss; the gradient by what is normalised is p - y.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse import entmax15, entmax15_loss, sparsemax, sparsemax_loss
from .stable import softmax, token_logprobs
from .textbook import Projection
from .transforms import normalized_logits


class Row:
    """(V,) logits, over the temperature, under one normalizer; fp32, or fp64 for fp64 logits, with gradient.

    normalized: (V,) whose distribution it is: logits over temperature, their symlog under StableMax. p, logprobs: (V,); a
    log-prob has its full relative precision however near p is to 1. A row of nothing but -inf is NaN throughout.
    Raises ValueError for a temperature that is none.
    """

    def __init__(self, logits: Tensor, projection: Projection, *, temperature: float = 1.0) -> None:
        self._projection: Projection = projection
        self.normalized = z = normalized_logits(
            logits, temperature, "stablemax" if projection == "stablemax" else "softmax"
        )
        if projection in ("softmax", "stablemax"):
            self.p = softmax(z)
            self.logprobs = token_logprobs(z.expand(len(z), len(z)), torch.arange(len(z)))
        else:
            self.p = sparsemax(z) if projection == "sparsemax" else entmax15(z)
            self.logprobs = self.p.log()

    @property
    def entropy(self) -> Tensor:
        """(), -sum p log p in nats."""
        return -(self.p * self.logprobs.masked_fill(self.p == 0, 0.0)).sum()

    def loss(self, target: int) -> Tensor:
        """(), of the true token; +inf for one that is masked."""
        if self._projection in ("softmax", "stablemax"):
            return -token_logprobs(self.normalized, torch.tensor(target))
        of = sparsemax_loss if self._projection == "sparsemax" else entmax15_loss
        return of(self.normalized, torch.tensor(target), reduction="none")
