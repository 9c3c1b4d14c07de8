"""One flat stream of real tokens: every prompt once, its completions behind it, nothing padded.

The stream is a forest in depth-first order. A segment is a run of tokens that nobody branches out of; it attends to its
ancestors and, causally, to itself. Depth-first order puts all descendants of a segment right behind it, so "everybody
below this prompt" is one slice, and attention over the prompt's keys is one unmasked call for the whole group.

    prompt A | completion A0 | completion A1 | prompt B | completion B0 ...
    [s, e)   [e ........................ reach)

Two savings follow from what is asked. The last token of a completion predicts nothing that is wanted, so it is not in
the stream. Completions of one prompt that are equal are in it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.int32]
Index: TypeAlias = npt.NDArray[np.int64]

# A common beginning shorter than this costs more in attention calls than it saves in matrix products.
MIN_SHARED_PREFIX = 16
# Every level of nesting is one more attention call and one more merge for all that is below it.
MAX_NESTING = 16


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, end) of the stream, the first at position `position`; descendants are rows [end, reach)."""

    start: int
    end: int
    reach: int
    position: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class PackedLayout:
    """Where every token of a batch is.

    token_ids, positions: (T,) the stream and each token's position in its own sequence.
    prompts: segments with descendants, parents before children. completions: segments without.
    predict_rows: (N,) for each completion token, in the caller's order, the row whose hidden state predicts it.
    targets: (N,) the token ids to be predicted.
    """

    token_ids: Tokens
    positions: Index
    prompts: tuple[Segment, ...]
    completions: tuple[Segment, ...]
    predict_rows: Index
    targets: Tokens

    @property
    def tokens(self) -> int:
        """T, the rows that go through the model."""
        return len(self.token_ids)

    @classmethod
    def build(
        cls,
        prompts: Sequence[Tokens],
        completions: Sequence[Sequence[Tokens]],
        *,
        share_prefixes: bool = True,
    ) -> PackedLayout:
        """Pack K groups: prompts[k], (P,) with P >= 1, and its completions[k], each (C,) with C >= 0.

        share_prefixes: also split prompts where they begin alike, and compute the common part once. False merges only
        equal prompts; then the way a sequence is cut depends on the sequence alone, which bitwise reproducibility needs.
        """
        return _Builder(prompts, completions, share_prefixes).layout()


class _Builder:
    """Grows the stream depth first. One use, one layout."""

    def __init__(self, prompts: Sequence[Tokens], completions: Sequence[Sequence[Tokens]], share: bool) -> None:
        self.groups: dict[bytes, list[int]] = {}  # equal prompts -> the groups that have them
        for k, prompt in enumerate(prompts):
            self.groups.setdefault(np.ascontiguousarray(prompt, dtype=">i4").tobytes(), []).append(k)
        # big-endian bytes of non-negative ids sort as the sequences themselves do
        self.keys = sorted(self.groups)
        self.unique = [prompts[self.groups[key][0]] for key in self.keys]
        self.asked = completions
        self.share = share
        self.chunks: list[Tokens] = []
        self.offsets: list[int] = []  # position of each chunk's first token
        self.size = 0
        self.prompts: list[Segment] = []
        self.leaves: list[Segment] = []
        # (k, g) -> the row before the completion, and the first row of its own tokens
        self.placed: dict[tuple[int, int], tuple[int, int]] = {}

    def layout(self) -> PackedLayout:
        for a, b in self._branches(0, len(self.unique), 0, level=0):
            self._grow(a, b, 0, level=0)
        rows: list[Index] = []
        targets: list[Tokens] = []
        for k, group in enumerate(self.asked):
            for g, completion in enumerate(group):
                if len(completion) == 0:
                    continue
                before, first = self.placed[k, g]
                own = np.arange(first, first + len(completion) - 1, dtype=np.int64)
                rows.append(np.concatenate([np.array([before], dtype=np.int64), own]))
                targets.append(completion)
        return PackedLayout(
            token_ids=np.concatenate(self.chunks).astype(np.int32, copy=False)
            if self.chunks
            else np.zeros(0, np.int32),
            positions=np.concatenate([np.arange(o, o + len(c)) for o, c in zip(self.offsets, self.chunks, strict=True)])
            if self.chunks
            else np.zeros(0, np.int64),
            prompts=tuple(self.prompts),
            completions=tuple(self.leaves),
            predict_rows=np.concatenate(rows) if rows else np.zeros(0, np.int64),
            targets=np.concatenate(targets).astype(np.int32, copy=False) if targets else np.zeros(0, np.int32),
        )

    def _append(self, tokens: Tokens, position: int) -> int:
        start = self.size
        self.chunks.append(tokens)
        self.offsets.append(position)
        self.size += len(tokens)
        return start

    def _grow(self, lo: int, hi: int, depth: int, level: int) -> None:
        """Place the sorted unique prompts [lo, hi), which share a segment that begins at `depth`, below what is placed."""
        first = self.unique[lo]
        end_depth = _common_prefix(first, self.unique[hi - 1])
        start = self._append(first[depth:end_depth], depth)
        slot, end = len(self.prompts), self.size
        self.prompts.append(Segment(start, end, end, depth))
        below = lo
        if len(first) == end_depth:
            self._place_completions(lo, end_depth)
            below = lo + 1
        for a, b in self._branches(below, hi, end_depth, level + 1):
            self._grow(a, b, end_depth, level + 1)
        self.prompts[slot] = Segment(start, end, self.size, depth)

    def _branches(self, lo: int, hi: int, depth: int, level: int) -> list[tuple[int, int]]:
        """Cut [lo, hi) into runs that share enough tokens beyond `depth` to be worth a segment, or stand alone."""
        runs: list[tuple[int, int]] = []
        start = lo
        for i in range(lo + 1, hi + 1):
            if (
                i == hi
                or not self.share
                or level == MAX_NESTING
                or _common_prefix(self.unique[start], self.unique[i]) - depth < MIN_SHARED_PREFIX
            ):
                runs.append((start, i))
                start = i
        return runs if hi > lo else []

    def _place_completions(self, unique: int, position: int) -> None:
        before = self.size - 1
        first_row: dict[bytes, int] = {}
        mine = [(k, g) for k in self.groups[self.keys[unique]] for g in range(len(self.asked[k]))]
        # equal lengths side by side, so that attention can take them as one batch without gathering
        for k, g in sorted(mine, key=lambda kg: len(self.asked[kg[0]][kg[1]])):
            completion = self.asked[k][g]
            key = completion.tobytes()
            if key not in first_row:
                start = self._append(completion[:-1], position)
                first_row[key] = start
                if len(completion) > 1:
                    self.leaves.append(Segment(start, self.size, self.size, position))
            self.placed[k, g] = (before, first_row[key])


def _common_prefix(a: Tokens, b: Tokens) -> int:
    """How many leading tokens two sequences share."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
