"""The kernels of `forward` as one call for a row block: grids, scratch, and what is made of their sums.

Every token of a row is counted once: the target and the asked ids by themselves, the best in lists, all others in the
sums over tiles. Up to 64 best are kept in a tile's registers; a few tiles go first, and what is no better than the k best
of those enters no list. For more than 64 the kernel hands out the logits of a few tiles at a time. Nothing here waits for
the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set

import torch
import triton
from torch import Tensor

from ..figures import Chosen, HeadScores, figures
from ..online import OnlineLogSumExp
from ..tiles import RowBlock, padded
from . import forward
from .asked import Asked
from .best import EMPTY, Best, ids_of, keys_of, logits_of
from .blocks import product_blocks, vocabulary_tile
from .sums import sum_of_logits, sum_of_parts
from .tiles import TritonTiles, launch, product_options, temperature_of

LONGEST_LIST = 64
FIRST_TILES = 4


def block_scores(
    tiles: TritonTiles, block: RowBlock, want: Set[str], top_k: int = 0, token_ids: Tensor | None = None
) -> HeadScores:
    """Figures of one row block. token_ids: (R, j) of all rows, checked."""
    asked = None if token_ids is None else Asked.of(padded(token_ids[block.start : block.stop], block.height))
    scoring = _Scoring(tiles, block, want, top_k, asked)
    tiled, above = scoring.run()  # neither target nor asked ids nor what is in lists
    others = _together(tiled, *scoring.in_lists)
    ids_rest = None
    if asked is not None:
        ids_rest = _together(others, _of_target_unless_asked(scoring.target, block.targets, asked))
        others = _together(others, sum_of_logits(asked.logits_of_others(block.targets), entropy=scoring.entropy))
    top_rest = _together(*scoring.dropped, *([tiled] if scoring.listed else []), rows=block.height)
    tail, best = "tail" in want, scoring.best
    chosen = Chosen(
        top_ids=None if best is None else ids_of(best.keys, tiles.vocab),
        top=None if best is None else logits_of(best.keys),
        top_rest=top_rest if tail and best is not None else None,
        ids=None if asked is None else asked.ids,
        asked=None if asked is None else asked.logits_as_asked(block.targets, scoring.target),
        ids_rest=ids_rest if tail else None,
    )
    return figures(scoring.target, block.targets, others, above, want, chosen).first(block.rows)


class _Scoring:
    """A row block on its way through the vocabulary. After `run`: best; in_lists, the sums over all lists; dropped, the sums
    over what was not or did not stay among the best."""

    def __init__(self, tiles: TritonTiles, block: RowBlock, want: Set[str], top_k: int, asked: Asked | None) -> None:
        self.tiles, self.block, self.want, self.asked = tiles, block, want, asked
        self.entropy = "entropy" in want
        self.target = tiles.target_logits(block)[:, 0].contiguous()
        self.listed = 0 < top_k <= LONGEST_LIST
        self.best = Best(block.height, top_k, self.target.device) if top_k else None
        self.in_lists: list[OnlineLogSumExp] = []
        self.dropped: list[OnlineLogSumExp] = []

    def run(self) -> tuple[OnlineLogSumExp, Tensor | None]:
        """The sums over tiles, and (M,) how many of all logits are above the target's."""
        tiles, block, target = self.tiles, self.block, self.target
        crowded = tiles.normalizer == "stablemax" or self.best is not None or self.asked is not None
        best = self.best is not None
        blocks = product_blocks(
            tiles.weight.dtype, tiles.capability, elaborate=tiles.elaborate, crowded=crowded, best=best
        )
        tile = vocabulary_tile(tiles.vocab, blocks.n, listed=self.listed)
        count, height = triton.cdiv(tiles.vocab, tile), block.height
        longest = 0 if self.best is None else self.best.keys.shape[1]
        length = max(16, triton.next_power_of_2(longest)) if self.listed else 0
        partial = target.new_empty(3 if self.entropy else 2, count, height)
        above = target.new_empty(count, height, dtype=torch.int32) if "rank" in self.want else None
        asked = self.asked
        begins = None if asked is None else asked.begins(tiles.vocab, tile)
        for span in self._spans(count):
            keys = floor = None
            if self.best is not None:
                keys = torch.empty(height, len(span) * (length or tile), dtype=torch.int64, device=target.device)
                floor = self.best.floor() if self.listed and span.start else None
            launch(
                forward.partials_kernel,
                (triton.cdiv(height, blocks.m), len(span)),
                block.hidden.contiguous(),
                tiles.weight,
                tiles.bias,
                temperature_of(block),
                block.targets,
                target,
                partial[0],
                partial[1],
                partial[2] if self.entropy else None,
                above,
                None if asked is None else asked.ascending,
                begins,
                None if asked is None else asked.found,
                floor,
                keys,
                height,
                tiles.vocab,
                tiles.weight.shape[1],
                0 if asked is None else asked.ids.shape[1],
                count,
                span.start,
                LIST=length,
                TILE=tile,
                **tiles.head_options(),
                **product_options(blocks, tiles.weight.shape[1]),
            )
            if keys is not None:
                self._take(keys)
        if asked is not None:
            others = asked.others(block.targets)
            self._compare(keys_of(asked.logits(), others).masked_fill(others < 0, EMPTY))
        self._compare(keys_of(target, block.targets)[:, None])
        weighteds = partial[2] if self.entropy else None
        return sum_of_parts(partial[0], partial[1], weighteds, above, entropy=self.entropy)

    def _spans(self, count: int) -> Iterator[range]:
        """The tiles of each launch: all; with lists the first few and then the rest; for more best than lists hold, few."""
        if self.best is None:
            yield range(count)
            return
        yield range(min(FIRST_TILES, count))
        step = max(count, 1) if self.listed else FIRST_TILES
        for start in range(FIRST_TILES, count, step):
            yield range(start, min(start + step, count))

    def _take(self, keys: Tensor) -> None:
        """Take in what the kernel found, (M, n)."""
        if self.listed:
            self.in_lists.append(sum_of_logits(logits_of(keys), entropy=self.entropy))
        self._compare(keys)

    def _compare(self, keys: Tensor) -> None:
        if self.best is None:
            return
        dropped = self.best.take(keys)
        if "tail" in self.want:
            self.dropped.append(sum_of_logits(dropped))


def _together(*parts: OnlineLogSumExp, rows: int = 0) -> OnlineLogSumExp:
    """The sums over the tokens of all parts. rows: how many, where there may be no part."""
    entropy = bool(parts) and all(part.weighted is not None for part in parts)
    if not parts:
        return OnlineLogSumExp(rows)
    first = parts[0].total
    whole = OnlineLogSumExp(len(first), dtype=first.dtype, device=first.device, entropy=entropy)
    for part in parts:
        whole.merge(part)
    return whole


def _of_target_unless_asked(target: Tensor, targets: Tensor, asked: Asked) -> OnlineLogSumExp:
    """The target as a sum of its own, nothing where it is among the asked ids."""
    again = (asked.ids == targets[:, None]).any(-1)
    alone = OnlineLogSumExp(len(target), device=target.device)
    alone.consume(target.masked_fill(again, -math.inf)[:, None])
    return alone
