"""How many rows a stream must have for torch's elementwise loops to leave no remainder.

A model's activations (SiLU, GELU, sigmoid) run in loops of torch's own, which this package cannot replace: see `elementwise`
for what they do to the last few numbers of a tensor and of each thread's share. So the stream is padded until every such loop
comes out even, however many threads there are.
"""

from __future__ import annotations

import math
from collections.abc import Collection

# two vectors of the widest kind, 512 bits; every narrower pair divides it
LANES = 32
# at::internal::GRAIN_SIZE: a loop takes one thread for each so many numbers that are begun, up to all threads
_GRAIN = 32768


def aligned_rows(rows: int, widths: Collection[int], threads: int, multiple: int = LANES) -> int:
    """The smallest multiple of `multiple` (of LANES itself, too) from `rows` on at which no loop has a remainder.

    widths: numbers a row of the tensors that the loops run over. threads: of torch, in the process that computes.
    """
    step = math.lcm(multiple, LANES)
    count = max(-(-rows // step), 1) * step
    while not all(_comes_out_even(count * width, threads) for width in widths):
        count += step
    return count


def _comes_out_even(numbers: int, threads: int) -> bool:
    """Whether each thread's share of a loop over so many numbers is in whole pairs of vectors."""
    shares = max(1, min(threads, -(-numbers // _GRAIN)))
    return numbers % (shares * LANES) == 0
