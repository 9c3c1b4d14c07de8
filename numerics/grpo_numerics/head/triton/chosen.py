"""Single tokens out of a tile of logits: the ids that were asked for, and the best of a row, kept in registers.

Device functions only. Both take what they find out of the tile, so that every logit of a row is counted once: in the
tile's sums, in the row's list, or with the asked ids. What is left is then the tail, summed by itself and not as one minus
what was found.

The list is kept by exchange: while a row of the tile holds something better than the worst of its list, the two change
places. A tile needs as many turns as its busiest row has new entries, few once a list is filled, and each turn costs two
reductions along the rows.
"""

# pyright: reportMissingParameterType=false
# Of a loop's condition and of what a loop changes pyright knows less than Triton.
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false

import triton
import triton.language as tl

# Ids are below it; entries of a list that are not filled are from it on.
BEYOND = tl.constexpr(1 << 30)
# What stands for a logit of -inf that is a token's, so that -inf alone says that there is none.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def lift_asked(z, column, end, upcoming, asked, asked_logits, row, rows, width):
    """z (M, N) without the asked logits in it, which go to memory, and the first asked id from `end` on.

    column (N,): ids of the tile, those from `end` on beyond it. upcoming (M,): the first in each row of asked (R, width)
    that has not been seen. A repeated id is found at its first place.
    """
    held = tl.minimum(row, rows - 1).to(tl.int64)
    wanted = tl.load(asked + held * width + upcoming, mask=upcoming < width, other=BEYOND)
    pending = wanted < end
    while tl.max(pending.to(tl.int32), 0) > 0:
        here = (column[None, :] == wanted[:, None]) & pending[:, None]
        # a sum and not a maximum: NaN must come through
        found = tl.sum(tl.where(here, z, 0.0), 1)
        tl.store(asked_logits + held * width + upcoming, found, mask=pending & (row < rows))
        z = tl.where(here, float("-inf"), z)
        upcoming += pending.to(tl.int32)
        wanted = tl.load(asked + held * width + upcoming, mask=upcoming < width, other=BEYOND)
        pending = wanted < end
    return z, upcoming


@triton.jit
def empty_list(floor, held, LIST: tl.constexpr):
    """Values (M, LIST) and ids of a list in which everything has a place that lies above floor (R,), or above -inf."""
    best = tl.full((held.shape[0], LIST), float("-inf"), tl.float32)
    if floor is not None:
        best = tl.maximum(best, tl.load(floor + held)[:, None])
    ids = BEYOND + tl.arange(0, LIST)[None, :] + tl.zeros((held.shape[0], LIST), dtype=tl.int32)
    return best, ids


@triton.jit
def keep_best(z, column, best, ids):
    """The best of z (M, N) and of the list (M, LIST), and z with what leaves the list in the places of what enters it.

    Among equals the smaller id is better: it enters first and leaves last.
    """
    found, worst = tl.max(z, 1), tl.min(best, 1)
    better = found > worst
    while tl.max(better.to(tl.int32), 0) > 0:
        entering = tl.min(tl.where(z == found[:, None], column[None, :], BEYOND), 1)
        leaving = tl.max(tl.where(best == worst[:, None], ids, -1), 1)
        left = tl.where(leaving < BEYOND, worst, float("-inf"))
        here = (column[None, :] == entering[:, None]) & better[:, None]
        there = (ids == leaving[:, None]) & better[:, None]
        z = tl.where(here, left[:, None], z)
        best = tl.where(there, found[:, None], best)
        ids = tl.where(there, entering[:, None], ids)
        found, worst = tl.max(z, 1), tl.min(best, 1)
        better = found > worst
    return z, best, ids


@triton.jit
def keys_of(logits, ids):
    """int64 keys whose order is that of the logits (fp32), larger first, then of the ids, smaller first; see `best`."""
    value = tl.where(ids < BEYOND, tl.where(logits == 0.0, 0.0, logits), float("-inf"))
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)
