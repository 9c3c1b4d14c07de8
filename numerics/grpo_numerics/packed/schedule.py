"""Which attention calls a packed stream needs: worked out once per batch, run once per layer.

Two kinds of call. A *causal* call takes segments of one length as a batch, each attending to itself. A *cross* call takes
all rows below a segment as queries over that segment's keys. A sliding window turns a call that it cuts into a masked one;
calls it does not cut stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..alignment import LANES, row_block, stream_rows
from ..transfer import Parcel
from .layout import PackedLayout, Segment
from .stacked import Block, blocks_of
from .tree.gathered import Gathered
from .tree.plan import Ask, TreePlan
from .tree.segments import Tree

# A masked call holds a (queries, keys) mask: queries are taken this many at a time.
_MASK_ROWS = 1024
# Segments of unlike length share a call while padding stays below this share of it.
_MAX_PADDING = 0.15
# Padding is cut into segments of this many rows, so that no position in it is beyond a model's.
PADDING = LANES


@dataclass(frozen=True)
class CausalCall:
    """`index` (n, L): rows of n segments, padded by repeating the last row; `valid` (n * L,) the real ones, None if all."""

    index: Tensor
    valid: Tensor | None
    start: int | None  # the rows are start .. start + n * L in order: a view does, nothing is gathered
    mask: Tensor | None  # (L, L), True where a key is seen; None: plain causal


@dataclass(frozen=True, slots=True)
class CrossCall:
    """Rows [start, stop) over keys [key_start, key_stop); `rows` of them are wanted, the rest is padding."""

    start: int
    stop: int
    rows: int
    key_start: int
    key_stop: int
    mask: Tensor | None  # (stop - start, key_stop - key_start), True where a key is seen


@dataclass
class Schedule:
    """The calls of one layout on one device.

    exact: only segments of equal length share a call, and queries come in whole blocks, so that the bits of a row do not
    depend on what else is in the batch. The stream then ends in `block` rows of padding or more (`padded_tokens`).
    rows: with exact, the stream is padded to a multiple of this many rows (and `block`): for matrix products whose bits depend
    on how many rows they have. widths, threads: with exact, what the model's elementwise loops run over (`aligned_rows`).
    """

    layout: PackedLayout
    device: torch.device
    exact: bool = False
    rows: int = 1
    widths: tuple[int, ...] = ()
    threads: int = 1
    stacked: bool = False
    _calls: dict[int | None, tuple[list[CausalCall], list[CrossCall]]] = field(default_factory=lambda: {}, repr=False)

    @property
    def block(self) -> int:
        """Queries that a cross call takes at a time, with exact."""
        return row_block(self.threads)

    @cached_property
    def padded_tokens(self) -> int:
        """Rows of the stream as it goes through the model."""
        if not self.exact:
            return self.layout.tokens
        return stream_rows(self.layout.tokens, self.rows, self.widths, self.threads)

    @cached_property
    def blocks(self) -> list[Block] | None:
        """What `stacked_attention` goes by; None where it is not wanted, or sequences are too long for it."""
        return blocks_of(self.layout) if self.stacked and not self.exact else None

    def cuts(self, window: int | None) -> bool:
        """Whether a sliding window of so many tokens hides anything from anybody here."""
        return window is not None and window <= self.layout.positions.max(initial=0)

    @cached_property
    def tree(self) -> Tree:
        """The segments, padding included, for code that takes the stream as a whole."""
        return Tree.of(self.layout, self.padded_tokens)

    @cached_property
    def plan(self) -> TreePlan:
        """Tables of the tree kernels."""
        return TreePlan(self.tree)

    @cached_property
    def gathered(self) -> Gathered:
        """Keys for torch's flash attention on a GPU."""
        return Gathered.of(self.tree)

    @cached_property
    def inputs(self) -> Parcel[str]:
        """`input_ids` and `position_ids`, (1, padded_tokens) int64; padding in segments of PADDING."""
        layout, padding = self.layout, self.padded_tokens - self.layout.tokens
        behind = np.arange(padding, dtype=np.int64)
        return Parcel(
            {
                "input_ids": np.concatenate([layout.token_ids, np.zeros_like(behind)], dtype=np.int64)[None],
                "position_ids": np.concatenate([layout.positions, behind % PADDING])[None],
            }
        )

    def ahead(self, asked: Collection[Ask] = ()) -> None:
        """Work out what is surely needed, beside the thread that computes. asked: `plan.asked` of an earlier batch."""
        _ = self.inputs
        if self.device.type != "cpu":
            self.plan.ahead(asked)
        elif self.blocks is None:
            self.calls(None)  # full attention is in nearly every model

    def calls(self, window: int | None) -> tuple[list[CausalCall], list[CrossCall]]:
        """Causal calls, then cross calls with parents before children. window: sliding window in tokens, or None."""
        if not self.cuts(window):
            window = None
        if window not in self._calls:
            self._calls[window] = (list(self._causal(window)), list(self._cross(window)))
        return self._calls[window]

    def _causal(self, window: int | None) -> Iterator[CausalCall]:
        segments = [*self.layout.segments]
        for start in range(self.layout.tokens, self.padded_tokens, PADDING):
            end = min(start + PADDING, self.padded_tokens)
            segments.append(Segment(start, end, end, 0))
        for bucket in _buckets(segments, 0.0 if self.exact else _MAX_PADDING):
            length = max(s.length for s in bucket)
            starts, lengths = (
                np.array([of(s) for s in bucket])[:, None] for of in (lambda s: s.start, lambda s: s.length)
            )
            steps = np.arange(length)
            rows = {"index": starts + np.minimum(steps, lengths - 1), "valid": np.flatnonzero(steps < lengths)}
            there = Parcel(rows).on(self.device)
            step = torch.arange(length, device=self.device)
            ragged = any(s.length != length for s in bucket)
            in_order = not ragged and all(b.start == a.end for a, b in itertools.pairwise(bucket))
            mask = None
            if window is not None and length > window:
                back = step[:, None] - step[None, :]
                mask = (back >= 0) & (back < window)
            valid = there["valid"] if ragged else None
            yield CausalCall(there["index"], valid, bucket[0].start if in_order else None, mask)

    def _cross(self, window: int | None) -> Iterator[CrossCall]:
        positions = self.inputs.on(self.device)["position_ids"][0] if window is not None else None
        mask_rows = max(1, _MASK_ROWS // self.block) * self.block if self.exact else _MASK_ROWS
        for parent in self.layout.segments:
            rows = parent.reach - parent.end
            if rows == 0:
                continue
            if positions is None or window is None:
                stop = parent.end + (-(-rows // self.block) * self.block if self.exact else rows)
                yield CrossCall(parent.end, stop, rows, parent.start, parent.end, None)
                continue
            keys = positions[parent.start : parent.end]
            for start in range(parent.end, parent.reach, mask_rows):
                wanted = min(mask_rows, parent.reach - start)
                nearest = self.layout.positions[start : start + wanted].min() - (parent.position + parent.length - 1)
                if nearest >= window:
                    continue  # nobody here sees that far back
                stop = start + (-(-wanted // self.block) * self.block if self.exact else wanted)
                seen = torch.zeros(stop - start, len(keys), dtype=torch.bool, device=self.device)
                seen[:wanted] = positions[start : start + wanted, None] - keys[None, :] < window
                yield CrossCall(start, stop, wanted, parent.start, parent.end, seen)


def _buckets(segments: Sequence[Segment], max_padding: float) -> Iterator[list[Segment]]:
    """Segments that go into one causal call: of like length, with at most `max_padding` of the call wasted."""
    bucket: list[Segment] = []
    real = 0
    for segment in sorted((s for s in segments if s.length), key=lambda s: (s.length, s.start)):
        # the newest is the longest: with it in, the call has len * length rows
        if bucket and 1 - (real + segment.length) / ((len(bucket) + 1) * segment.length) > max_padding:
            yield bucket
            bucket, real = [], 0
        bucket.append(segment)
        real += segment.length
    if bucket:
        yield bucket
