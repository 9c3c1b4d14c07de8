"""Scoring in two stages without atomics: partial sums a vocabulary tile, then their reduction.

A program of the first stage owns one (row block, vocabulary tile) and one of the second one row block, each writes
only what it owns, and every loop has a fixed order: the same input gives the same bits each time. The blocks do not
depend on the number of rows, so neither do the bits of a row.

Formula: Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867, as in `head.online`. The
target is kept out of the sums and its logit is an input, for the reasons that `head` gives.
"""

# pyright: reportMissingParameterType=false

import triton
import triton.language as tl

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
    rows,
    vocab,
    dim,
    logit_scale,
    softcap,
    STABLEMAX: tl.constexpr,
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
    aboves, how many logits are larger than the target's, or None. Grid: (row blocks, tiles), row blocks first: those
    that run together then read the same tile of the weight.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tile = tl.program_id(1)
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
    for start in range(0, TILE, BLOCK_N):
        column = tile * TILE + start + tl.arange(0, BLOCK_N)
        known = tl.minimum(column, vocab - 1)
        z = dot_products(hidden, weight, held, known, dim, BLOCK_K, EVEN_K, PRECISION)
        z = transformed(biased(z, bias, known, logit_scale), softcap, warmth, STABLEMAX)
        counted = (column < vocab)[None, :] & (column[None, :] != target[:, None])
        z = tl.where(counted, z, float("-inf"))
        if aboves is not None:
            above += tl.sum((z > threshold[:, None]).to(tl.int32), 1)
        larger = tl.maximum(maximum, tl.max(z, 1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        z -= shift[:, None]
        powers = tl.exp2(z * LOG2E)
        gap = maximum - shift
        decay = tl.exp2(gap * LOG2E)
        if weighteds is not None:
            of_tile = tl.sum(powers * tl.maximum(z, FAR_BELOW), 1)
            weighted = decay * (weighted + tl.maximum(gap, FAR_BELOW) * total) + of_tile
        total = decay * total + tl.sum(powers, 1)
        maximum = larger
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
    tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The (tiles, R) partial sums of `partials_kernel` to the (R,) sums over the whole vocabulary."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK_M,), dtype=tl.float32)
    above = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        place = tile[:, None] * rows + row[None, :]
        inside = (tile < tiles)[:, None] & (row < rows)[None, :]
        peaks = tl.load(maxima + place, mask=inside, other=float("-inf"))
        larger = tl.maximum(maximum, tl.max(peaks, 0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        gaps = peaks - shift[None, :]
        decays = tl.exp2(gaps * LOG2E)
        gap = maximum - shift
        decay = tl.exp2(gap * LOG2E)
        sums = tl.load(totals + place, mask=inside, other=0.0)
        if weighteds is not None:
            of_tiles = tl.load(weighteds + place, mask=inside, other=0.0)
            of_tiles = decays * (of_tiles + tl.maximum(gaps, FAR_BELOW) * sums)
            weighted = decay * (weighted + tl.maximum(gap, FAR_BELOW) * total) + tl.sum(of_tiles, 0)
        total = decay * total + tl.sum(decays * sums, 0)
        if aboves is not None:
            above += tl.sum(tl.load(aboves + place, mask=inside, other=0), 0)
        maximum = larger
    inside = row < rows
    tl.store(maximum_out + row, maximum, mask=inside)
    tl.store(total_out + row, total, mask=inside)
    if weighteds is not None:
        tl.store(weighted_out + row, weighted, mask=inside)
    if aboves is not None:
        tl.store(above_out + row, above, mask=inside)
