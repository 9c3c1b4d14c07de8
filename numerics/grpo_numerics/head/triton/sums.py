"""The merging kernel as a call: parts of rows to the sums of whole rows, in an order that no other row changes.

torch reduces rows in an order that depends on how many there are; this does not.
"""

from __future__ import annotations

import triton
from torch import Tensor

from ..online import OnlineLogSumExp
from .forward import merge_kernel
from .tiles import launch

_ROWS, _PARTS = 16, 64


def sum_of_parts(
    maxima: Tensor, totals: Tensor | None, weighteds: Tensor | None, aboves: Tensor | None, *, entropy: bool
) -> tuple[OnlineLogSumExp, Tensor | None]:
    """Sums of R rows, and how many logits are above the target's, from those of their parts, each (parts, R), of one
    layout in memory. totals None: the parts are single logits."""
    parts, rows = maxima.shape
    sums = OnlineLogSumExp(rows, dtype=maxima.dtype, device=maxima.device, entropy=entropy)
    above = None if aboves is None else aboves.new_empty(rows)
    launch(
        merge_kernel,
        (triton.cdiv(rows, _ROWS),),
        maxima,
        totals,
        weighteds,
        aboves,
        sums.maximum,
        sums.total,
        sums.weighted,
        above,
        rows,
        parts,
        maxima.stride(1),
        maxima.stride(0),
        BLOCK_M=_ROWS,
        BLOCK_T=_PARTS,
    )
    return sums, above


def sum_of_logits(logits: Tensor, *, entropy: bool = False) -> OnlineLogSumExp:
    """Sums over (R, n) logits; -inf counts nothing."""
    return sum_of_parts(logits.contiguous().t(), None, None, None, entropy=entropy)[0]
