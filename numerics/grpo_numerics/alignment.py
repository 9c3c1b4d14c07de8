"""How many rows a batch must have for a row's bits not to depend on the rows beside it, on a CPU.

Two things would make them. A BLAS gives each thread its share of a product's rows, and takes another kernel, with other bits,
where fewer than four are left over (seen in MKL on AMD at every setting of MKL_CBWR). And a model's activations (SiLU, GELU,
sigmoid) run in loops of torch's own, which this package cannot replace: see `elementwise` for what they do to the last few
numbers of a tensor and of each thread's share. So rows are padded until every share comes out even.
"""

from __future__ import annotations

import math
from collections.abc import Collection

# two vectors of the widest kind, 512 bits; every narrower pair divides it
LANES = 32
# rows that a BLAS takes at a time
_ROWS = 4
# at::internal::GRAIN_SIZE: a loop takes one thread for each so many numbers that are begun, up to all threads
_GRAIN = 32768


def row_block(threads: int, multiple: int = LANES) -> int:
    """Rows by which a product may grow: a multiple of `multiple` in which every thread's share is in whole fours."""
    return math.lcm(multiple, _ROWS * threads)


def aligned_rows(rows: int, widths: Collection[int], threads: int) -> int:
    """The smallest count from `rows` on, in whole `row_block`s, at which no elementwise loop has a remainder.

    widths: numbers a row of the tensors that the loops run over. threads: of torch, in the process that computes.
    """
    step = row_block(threads)
    count = max(-(-rows // step), 1) * step
    while not all(_comes_out_even(count * width, threads) for width in widths):
        count += step
    return count


def stream_rows(tokens: int, step: int, widths: Collection[int], threads: int) -> int:
    """Rows of a stream of so many tokens: filled up to a multiple of `step`, a `row_block` of padding behind, aligned."""
    whole = -(-tokens // step) * step
    return aligned_rows(whole + row_block(threads), widths, threads)


def _comes_out_even(numbers: int, threads: int) -> bool:
    """Whether each thread's share of a loop over so many numbers is in whole pairs of vectors."""
    shares = max(1, min(threads, -(-numbers // _GRAIN)))
    return numbers % (shares * LANES) == 0
