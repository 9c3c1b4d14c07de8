"""What the tree kernels must know of a batch: small int32 tables, made by numpy, the same for all layers of a kind.

Keys are taken in blocks that begin at multiples of BLOCK_N *positions of the sequence*, however it is cut into segments. A
block that lies in one segment is `BLOCK_N` neighbouring rows of the stream; one that spans several is a *joint*, a list of
rows. So a row's bits depend on its own sequence alone, and a sequence takes fewer blocks than if each segment had its own.

    positions      0 ........ 64 ....... 128 ....... 192
    prompt         [ block    | block    | 10 rows
    completion                             54 rows, joint  | block | diagonal
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .segments import Tree

Table = npt.NDArray[np.int32]

# Columns of the tables as the kernels read them: a power of two, so that a row begins where a vector may.
TILE_WIDTH = 8
ITEM_WIDTH = 4


@dataclass(frozen=True)
class QueryTables:
    """For programs that own queries: `BLOCK_M` (row, query head) pairs of one segment and one key head.

    tiles (X, 8): first pair, segment's first row, its end, position of its first row, items from, items to, 0, 0; the
    longest work first, so that what runs last is short. items (Y, 4), root first, a segment's own last: joints from, joints to,
    row of the first whole block, whole blocks. joints (J, BLOCK_N): the stream rows of a block's positions; past the end of a
    sequence its last row again.
    """

    tiles: Table
    items: Table
    joints: Table

    @classmethod
    def of(cls, tree: Tree, repeats: int, block_m: int, block_n: int) -> QueryTables:
        """repeats: query heads that read one key head."""
        joints: list[npt.NDArray[np.int64]] = []
        items: list[tuple[int, int, int, int]] = []
        span: list[tuple[int, int]] = []  # of each segment in `items`
        above: dict[int, list[tuple[int, int, int, int]]] = {}  # a segment's items as its children see them
        for segment in range(len(tree)):
            parent = int(tree.parent[segment])
            if parent >= 0 and parent not in above:
                inherited = items[slice(*span[parent])][:-1]
                above[parent] = [*inherited, _item(tree, parent, block_n, joints, below=True)]
            mine = [*above.get(parent, ()), _item(tree, segment, block_n, joints, below=False)]
            span.append((len(items), len(items) + len(mine)))
            items += mine
        lengths = tree.end - tree.start
        counts = -(-lengths * repeats // block_m)
        of = np.repeat(np.arange(len(tree)), counts)
        pair = (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)) * block_m
        spans = np.asarray(span, dtype=np.int64).reshape(-1, 2)
        nothing = np.zeros_like(of)
        columns = (pair, tree.start[of], tree.end[of], tree.position[of], spans[of, 0], spans[of, 1], nothing, nothing)
        order = np.argsort(-(tree.position[of] + pair // repeats), kind="stable")
        return cls(
            _table(np.stack(columns, 1)[order], TILE_WIDTH),
            _table(items, ITEM_WIDTH),
            _table(np.stack(joints) if joints else [], block_n),
        )


@dataclass(frozen=True)
class KeyTables:
    """For programs that own keys: `BLOCK_N` keys of one segment and one key head, whose queries are the rows after them.

    tiles (X, 8): first key's row, segment's end, position of the first key, runs from, runs to, 0, 0, 0. runs (Y, 4): first
    row, end, position of the first row, 0, of rows that see the whole segment. Without a window neighbouring runs are one.
    """

    tiles: Table
    runs: Table

    @classmethod
    def of(cls, tree: Tree, block_n: int, *, windowed: bool) -> KeyTables:
        """windowed: positions in a run must follow one another, so that what a window hides is skipped."""
        runs: list[tuple[int, int, int, int]] = []
        tiles: list[tuple[int, ...]] = []
        cost: list[int] = []
        for segment, below in enumerate(tree.descendants):
            start, end = int(tree.start[segment]), int(tree.end[segment])
            first = len(runs)
            rows = 0
            for other in sorted(below, key=lambda s: int(tree.start[s])):
                begin, stop, position = (int(of[other]) for of in (tree.start, tree.end, tree.position))
                rows += stop - begin
                if len(runs) > first and runs[-1][1] == begin and not windowed:
                    runs[-1] = (runs[-1][0], stop, runs[-1][2], 0)
                elif stop > begin:
                    runs.append((begin, stop, position, 0))
            for row in range(start, end, block_n):
                at = int(tree.position[segment]) + row - start
                tiles.append((row, end, at, first, len(runs), 0, 0, 0))
                cost.append(end - row + rows)
        order = np.argsort(-np.asarray(cost, dtype=np.int64), kind="stable")
        return cls(
            _table(np.asarray(tiles, np.int64).reshape(-1, TILE_WIDTH)[order], TILE_WIDTH), _table(runs, ITEM_WIDTH)
        )


def _item(
    tree: Tree, segment: int, block_n: int, joints: list[npt.NDArray[np.int64]], *, below: bool
) -> tuple[int, int, int, int]:
    """The blocks of a path that belong to this segment: those in which its keys are the last.

    below: as its descendants see it, to whom a block that goes on after the segment's end is a joint of their own. For its own
    rows such a block is the diagonal's, unless it begins before the segment, too.
    """
    start, end, position = int(tree.start[segment]), int(tree.end[segment]), int(tree.position[segment])
    first_joint, first_whole = position // block_n, -(-position // block_n)
    past = (position + end - start) // block_n  # the first block that is not full at the segment's end
    from_ = len(joints)
    if first_joint < first_whole and (past > first_joint or not below):
        before = tree.rows_before(segment, position - first_joint * block_n)
        own = np.minimum(np.arange(start, start + block_n - len(before)), end - 1)
        joints.append(np.concatenate([before, own]))
    return from_, len(joints), start + first_whole * block_n - position, max(past - first_whole, 0)


def _table(rows: object, width: int) -> Table:
    table = np.asarray(rows, dtype=np.int32).reshape(-1, width)
    return table if len(table) else np.zeros((1, width), np.int32)  # a pointer to something
