"""Scoring in two stages without atomics: partial sums a vocabulary tile, then their reduction.

A program of the first stage owns one (row block, vocabulary tile) and one of the second one row block, each writes
only what it owns, and every loop has a fixed order: the same input gives the same bits each time. The blocks do not
depend on the number of rows, so neither do the bits of a row. Where single tokens are asked for, `chosen` takes them out
of a tile before it is summed; the caller puts their logits, which it then holds exactly once, back into the sums.

Formula: Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867, as in `head.online`. The
target is kept out of the sums and its logit is an input, for the reasons that `head` gives.
"""

# pyright: reportMissingParameterType=false

import triton
import triton.language as tl

from .chosen import BEYOND, LOWEST, empty_list, keep_best, keys_of, lift_asked
from .logits import FAR_BELOW, LOG2E, biased, dot_products, transformed


@triton.jit
def target_products_kernel(hidden, weight, targets, out, dim, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """out (R,) float64: hidden (R, dim) times the weight (V, dim) of each row's target. R: a multiple of BLOCK_M."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    target = tl.load(targets + row)
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float64)
    for start in range(0, dim, BLOCK_K):
        inside = (start + k < dim)[None, :]
        a = tl.load(hidden + row[:, None] * dim + (start + k)[None, :], mask=inside, other=0.0)
        b = tl.load(weight + target[:, None] * dim + (start + k)[None, :], mask=inside, other=0.0)
        sums += a.to(tl.float64) * b.to(tl.float64)
    tl.store(out + row, tl.sum(sums, 1))


@triton.jit
def partials_kernel(
    hidden,
    weight,
    bias,
    temperature,
    targets,
    target_logits,
    maxima,
    totals,
    weighteds,
    aboves,
    asked,
    begins,
    asked_logits,
    floor,
    keys,
    rows,
    vocab,
    dim,
    width,
    tiles,
    first_tile,
    logit_scale,
    softcap,
    STABLEMAX: tl.constexpr,
    LIST: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums over one tile of the vocabulary for one block of rows, without the rows' targets.

    In: hidden (R, dim), weight (V, dim), bias (V,) or None, temperature (R,) or None, targets (R,), target_logits (R,).
    Out, each (tiles, R): maxima; totals, the sum of e^(z - max); weighteds, the sum of (z - max) e^(z - max), or None;
    aboves, how many logits are larger than the target's, or None. Grid: (row blocks, tiles from first_tile on), row
    blocks first: those that run together then read the same tile of the weight.

    asked (R, width) int32 or None: ids to look up, ascending in each row; begins (R, tiles) int32: where those of a tile
    begin; asked_logits (R, width): their logits, which leave the sums, as the target's does.
    keys (R, tiles of this launch, LIST) int64 or None, see `chosen.keys_of`: the LIST best of the rest, which leave the sums,
    too, above floor (R,) or None. With LIST 0: (R, tiles of this launch x TILE), all of the rest, which stay in the sums.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = first_tile + tl.program_id(1)
    held = tl.minimum(row, rows - 1)
    target = tl.load(targets + held)
    threshold = tl.load(target_logits + held)
    warmth = temperature
    if temperature is not None:
        warmth = tl.load(temperature + held)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_M,), dtype=tl.float32)
    above = tl.zeros((BLOCK_M,), dtype=tl.int32)
    if asked is not None:
        upcoming = tl.load(begins + held * tiles + tile)
    if LIST > 0:
        best, best_ids = empty_list(floor, held, LIST)
    for start in range(0, TILE, BLOCK_N):
        column = tile * TILE + start + tl.arange(0, BLOCK_N)
        known = tl.minimum(column, vocab - 1)
        z = dot_products(hidden, weight, held, known, dim, BLOCK_K, EVEN_K, PRECISION)
        z = transformed(biased(z, bias, known, logit_scale), softcap, warmth, STABLEMAX)
        counted = (column < vocab)[None, :] & (column[None, :] != target[:, None])
        z = tl.where(counted, z, float("-inf"))
        if aboves is not None:
            above += tl.sum((z > threshold[:, None]).to(tl.int32), 1)
        if keys is not None:
            # A token whose logit is -inf may still be among the best of a row that has nothing better.
            z = tl.where(counted & (z < LOWEST), LOWEST, z)
        if asked is not None:
            end = tl.minimum(tile * TILE + start + BLOCK_N, vocab)
            z, upcoming = lift_asked(z, column, end, upcoming, asked, asked_logits, row, rows, width)
        if LIST > 0:
            z, best, best_ids = keep_best(z, column, best, best_ids)
        elif keys is not None:
            ids = tl.where(z == float("-inf"), BEYOND, column[None, :])
            at = row.to(tl.int64)[:, None] * (tl.num_programs(1) * TILE) + (column - first_tile * TILE)[None, :]
            tl.store(keys + at, keys_of(z, ids), mask=(row < rows)[:, None])
        larger = tl.maximum(maximum, tl.max(z, 1))
        shift = tl.where(larger <= (float("-inf") if keys is None else LOWEST), 0.0, larger)
        z -= shift[:, None]
        powers = tl.exp2(z * LOG2E)
        gap = maximum - shift
        decay = tl.exp2(gap * LOG2E)
        if weighteds is not None:
            of_tile = tl.sum(powers * tl.maximum(z, FAR_BELOW), 1)
            weighted = decay * (weighted + tl.maximum(gap, FAR_BELOW) * total) + of_tile
        total = decay * total + tl.sum(powers, 1)
        maximum = larger
    if LIST > 0:
        at = (row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1))[:, None] * LIST + tl.arange(0, LIST)[None, :]
        tl.store(keys + at, keys_of(best, best_ids), mask=(row < rows)[:, None])
    place = tile * rows + row
    inside = row < rows
    tl.store(maxima + place, maximum, mask=inside)
    tl.store(totals + place, total, mask=inside)
    if weighteds is not None:
        tl.store(weighteds + place, weighted, mask=inside)
    if aboves is not None:
        tl.store(aboves + place, above, mask=inside)


@triton.jit
def merge_kernel(
    maxima,
    totals,
    weighteds,
    aboves,
    maximum_out,
    total_out,
    weighted_out,
    above_out,
    rows,
    parts,
    row_stride,
    part_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Partial sums of R rows, as `partials_kernel` makes them, to the (R,) sums of each row, in a fixed order.

    The sums of part t of row r lie at r * row_stride + t * part_stride. totals None: maxima are single logits.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_M,), dtype=tl.float32)
    above = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for start in range(0, parts, BLOCK_T):
        part = start + tl.arange(0, BLOCK_T)
        place = part.to(tl.int64)[:, None] * part_stride + row.to(tl.int64)[None, :] * row_stride
        inside = (part < parts)[:, None] & (row < rows)[None, :]
        peaks = tl.load(maxima + place, mask=inside, other=float("-inf"))
        larger = tl.maximum(maximum, tl.max(peaks, 0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        gaps = peaks - shift[None, :]
        decays = tl.exp2(gaps * LOG2E)
        gap = maximum - shift
        decay = tl.exp2(gap * LOG2E)
        sums = 1.0
        if totals is not None:
            sums = tl.load(totals + place, mask=inside, other=0.0)
        if weighted_out is not None:
            of_parts = tl.maximum(gaps, FAR_BELOW) * sums
            if weighteds is not None:
                of_parts += tl.load(weighteds + place, mask=inside, other=0.0)
            of_parts = decays * of_parts
            weighted = decay * (weighted + tl.maximum(gap, FAR_BELOW) * total) + tl.sum(of_parts, 0)
        total = decay * total + tl.sum(decays * sums, 0)
        if aboves is not None:
            above += tl.sum(tl.load(aboves + place, mask=inside, other=0), 0)
        maximum = larger
    inside = row < rows
    tl.store(maximum_out + row, maximum, mask=inside)
    tl.store(total_out + row, total, mask=inside)
    if weighted_out is not None:
        tl.store(weighted_out + row, weighted, mask=inside)
    if aboves is not None:
        tl.store(above_out + row, above, mask=inside)
