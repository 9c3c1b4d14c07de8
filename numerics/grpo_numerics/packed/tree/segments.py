"""The prefix tree of a stream as arrays: which segment continues which, and at what position.

A row attends to every ancestor of its segment, whole, and to its own segment up to itself. Nothing here asks how deep the
tree is, nor in which order segments lie in the stream, as long as a parent comes before its children.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..layout import PackedLayout

Index = npt.NDArray[np.int64]

# Padding behind the stream is cut into segments of this many rows, so that no position in it is beyond a model's.
PADDING = 32


@dataclass(frozen=True)
class Tree:
    """S segments, parents before their children. Each (S,) int64: rows [start, end) of the stream, the segment that it
    continues (-1: none), and the position of its first row in its sequences."""

    start: Index
    end: Index
    parent: Index
    position: Index

    @classmethod
    def of(cls, layout: PackedLayout, rows: int | None = None) -> Tree:
        """The tree of a layout, and with `rows` the padding up to that many rows as segments of their own."""
        columns = np.array([(s.start, s.end, s.parent, s.position) for s in layout.segments], np.int64).reshape(-1, 4)
        start = np.arange(layout.tokens, rows or 0, PADDING, dtype=np.int64)
        none = np.full_like(start, -1)
        padding = np.stack([start, np.minimum(start + PADDING, rows or 0), none, np.zeros_like(start)], 1)
        return cls(*np.concatenate([columns, padding]).T)

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def chains(self) -> list[tuple[int, ...]]:
        """Each segment's ancestors, root first."""
        chains: list[tuple[int, ...]] = []
        for parent in self.parent.tolist():
            chains.append((*chains[parent], parent) if parent >= 0 else ())
        return chains

    @cached_property
    def descendants(self) -> list[list[int]]:
        """Each segment's descendants, in the order of the tree."""
        below: list[list[int]] = [[] for _ in range(len(self))]
        for segment, chain in enumerate(self.chains):
            for above in chain:
                below[above].append(segment)
        return below

    def rows_before(self, segment: int, count: int) -> Index:
        """The stream rows of the `count` positions right before the segment's first, or of all that there are."""
        pieces: list[Index] = []
        for above in reversed(self.chains[segment]):
            if count <= 0:
                break
            start, end = int(self.start[above]), int(self.end[above])
            pieces.append(np.arange(max(start, end - count), end))
            count -= end - start
        return np.concatenate(pieces[::-1]) if pieces else np.zeros(0, np.int64)
