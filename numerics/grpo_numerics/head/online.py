"""Log-sum-exp over blocks: one pass, any number of blocks, no more memory than a few numbers a row.

The running state of a row is (max, sum of e^(z-max)) and, where the entropy is wanted, sum of (z-max) e^(z-max). A new
block raises the maximum at most, and the sums are then rescaled once (Milakov and Gimelshein, "Online normalizer
calculation for softmax", arXiv 1805.02867). Two states over disjoint parts of a row merge into that of the whole.

No gradient: this is what scoring and the fused head are made of. For a differentiable log-sum-exp see `stable`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Stands for -inf where the value is going to be multiplied by an exponential that is exactly 0: 0 * -inf would be NaN.
FAR_BELOW = -1e4


class OnlineLogSumExp:
    """Running log-sum-exp (and entropy) of `rows` rows whose columns arrive in blocks.

    rows: R. dtype: of the state and of the arithmetic, float32 or float64. entropy: also keep what `entropy()` needs.
    Attributes `maximum`, `total` and `weighted` (None without entropy) are the (R,) state. A row that holds NaN or
    +inf ends as NaN; a row that saw nothing but -inf has log-sum-exp -inf and entropy NaN.
    """

    def __init__(
        self,
        rows: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        entropy: bool = False,
    ) -> None:
        self.maximum = torch.full((rows,), -math.inf, dtype=dtype, device=device)
        self.total = torch.zeros(rows, dtype=dtype, device=device)
        self.weighted = torch.zeros(rows, dtype=dtype, device=device) if entropy else None

    @torch.no_grad()
    def update(self, block: Tensor) -> None:
        """Take in a block (R, v) of further columns, any float dtype; it is left as it was."""
        self.consume(block.to(self.total.dtype, copy=True))

    @torch.no_grad()
    def consume(self, block: Tensor, spare: Tensor | None = None) -> None:
        """Take in a block (R, v) of the state's dtype, overwriting it.

        In place because the pass is bound by memory: a tile that the GEMM has just written is still in the cache.
        spare: (R, v) scratch for the entropy's second product; made here when missing.
        """
        maximum = torch.maximum(self.maximum, block.amax(-1))
        shift = _finite_shift(maximum)
        block.sub_(shift[:, None])
        # exp and not the faster exp2: see `elementwise`
        if self.weighted is None:
            powers = block.exp_()
            total, weighted = powers.sum(-1), None
        else:
            powers = torch.exp(block, out=torch.empty_like(block) if spare is None else spare)
            total = powers.sum(-1)
            weighted = powers.mul_(block.clamp_(min=FAR_BELOW)).sum(-1)
        self._add(maximum, shift, total, weighted)

    @torch.no_grad()
    def merge(self, other: OnlineLogSumExp) -> None:
        """Take in the state of the same rows over other columns."""
        maximum = torch.maximum(self.maximum, other.maximum)
        shift = _finite_shift(maximum)
        self._add(maximum, shift, *_rescaled(other, shift))

    def logsumexp(self) -> Tensor:
        """(R,) log-sum-exp of all columns so far, nats."""
        return _finite_shift(self.maximum) + self.total.log()

    def entropy(self) -> Tensor:
        """(R,) entropy of the softmax over all columns so far, nats: log-sum-exp - sum of p z, maximum taken out."""
        assert self.weighted is not None, "made with entropy=False"
        return self.total.log() - self.weighted / self.total

    def _add(self, maximum: Tensor, shift: Tensor, total: Tensor, weighted: Tensor | None) -> None:
        mine, mine_weighted = _rescaled(self, shift)
        self.maximum = maximum
        self.total = mine + total
        if mine_weighted is not None and weighted is not None:
            self.weighted = mine_weighted + weighted


def _finite_shift(maximum: Tensor) -> Tensor:
    """What to subtract before exp: the maximum, or 0 in a row that is all -inf so far (-inf - -inf would be NaN)."""
    return maximum.masked_fill(maximum == -math.inf, 0.0)


def _rescaled(state: OnlineLogSumExp, shift: Tensor) -> tuple[Tensor, Tensor | None]:
    """The sums of a state as if taken relative to `shift`, which is no smaller than its own maximum."""
    gap = state.maximum - shift
    decay = gap.exp()
    if state.weighted is None:
        return state.total * decay, None
    return state.total * decay, decay * (state.weighted + gap.clamp(min=FAR_BELOW) * state.total)
