"""Attention as whole matrix products, for processors that multiply halves faster than a blocked kernel does.

The keys of a row lie in a stack at the places of their positions. Depth-first order keeps it: when a row's turn comes, all that
stands below it are its ancestors' keys, and what other branches left above is overwritten by its own. So a block of rows is
one product over [0, end) of the stack, one softmax, one product with the values, whatever the nesting: no parts, no merge.

    stack   | prompt A, written once | own keys of the block |
    block k                            ^ base                 ^ end

Scores and weights are rounded to the type of the queries, as in any attention written out in that type; sums are in fp32. Bits
depend on how rows fall into blocks, that is, on the batch. No gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import PackedLayout, Segment

# Rows of a block: enough for a product's full speed, few enough for the cache to hold their scores.
BLOCK_ROWS = 128
# Scores held at a time, all heads together, as far as blocks of one key head allow.
_SCORES = 4 << 20
# From this length on the scores of one block leave the cache.
LONGEST = 8192


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [start, stop) of the stream over [0, base + rows) of the stack. bias: (rows, rows) bf16, 0 or -inf, over its own
    keys."""

    start: int
    stop: int
    base: int
    bias: Tensor

    @property
    def rows(self) -> int:
        return self.stop - self.start


def blocks_of(layout: PackedLayout) -> list[Block] | None:
    """The blocks in depth-first order; None where a sequence is longer than `LONGEST`."""
    if layout.positions.max(initial=0) >= LONGEST:
        return None
    biases: dict[tuple[int, ...], Tensor] = {}
    return [
        Block(start, start + sum(lengths), base, biases.setdefault(lengths, _bias(lengths)))
        for start, base, lengths in _cut([segment for segment in layout.segments if segment.length])
    ]


def stacked_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Sequence[Block], *, scale: float) -> Tensor:
    """q (H, T, D), k (H_kv, T, D), v (H_kv, T, D_v) of a stream -> (T, H, D_v), see `packed_attention`."""
    kv_heads, tokens, _ = k.shape
    repeats = q.shape[0] // kv_heads
    # the query heads of one key head are rows of its product
    queries = q.unflatten(0, (kv_heads, repeats)).transpose(1, 2).flatten(1, 2)
    height = max(block.base + block.rows for block in blocks)
    keys, values = k.new_empty(kv_heads, height, k.shape[-1]), v.new_empty(kv_heads, height, v.shape[-1])
    out = v.new_empty(kv_heads, tokens * repeats, v.shape[-1])
    unread = q.new_empty(1)  # beta=0: only alpha is wanted, which scales before it rounds
    for block in blocks:
        own, end = slice(block.base, block.base + block.rows), block.base + block.rows
        keys[:, own], values[:, own] = k[:, block.start : block.stop], v[:, block.start : block.stop]
        rows = slice(block.start * repeats, block.stop * repeats)
        for heads in _together(kv_heads, block.rows * repeats * end):
            scores = torch.baddbmm(unread, queries[heads, rows], keys[heads, :end].mT, beta=0, alpha=scale)
            scores.unflatten(1, (-1, repeats))[..., own] += block.bias[:, None]
            torch.bmm(torch.softmax(scores, -1), values[heads, :end], out=out[heads, rows])
    return out.unflatten(1, (tokens, repeats)).permute(1, 0, 2, 3).flatten(1, 2)


def _together(heads: int, scores: int) -> Iterator[slice]:
    """Key heads that are taken at a time when each has so many scores."""
    step = max(1, min(heads, _SCORES // scores))
    return (slice(start, start + step) for start in range(0, heads, step))


def _cut(segments: Sequence[Segment]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(start, base, lengths) of each block: short leaves of one parent share one, long segments are cut evenly."""
    short: list[Segment] = []
    for segment in segments:
        fits = sum(s.length for s in short) + segment.length <= BLOCK_ROWS
        if short and not (fits and short[0].parent == segment.parent):
            yield _packed(short)
            short = []
        if segment.reach == segment.end and segment.length <= BLOCK_ROWS:
            short.append(segment)
            continue
        if short:  # whose parent is this one's, too
            yield _packed(short)
            short = []
        pieces = -(-segment.length // BLOCK_ROWS)
        edges = [i * segment.length // pieces for i in range(pieces + 1)]
        for a, b in itertools.pairwise(edges):
            yield segment.start + a, segment.position + a, (b - a,)
    if short:
        yield _packed(short)


def _packed(leaves: Sequence[Segment]) -> tuple[int, int, tuple[int, ...]]:
    return leaves[0].start, leaves[0].position, tuple(leaf.length for leaf in leaves)


def _bias(lengths: tuple[int, ...]) -> Tensor:
    """(n, n): each row sees those of its own segment up to itself. 0 and -inf are the same in every type."""
    seen = torch.block_diag(*(torch.ones(n, n, dtype=torch.bool).tril() for n in lengths))
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, -torch.inf)
