"""One flat stream of real tokens: what sequences have in common once, nothing padded.

The stream is the prefix forest of all sequences in depth-first order. A segment is a run of tokens that nobody branches out of;
it attends to its ancestors, whole, and causally to itself. Depth-first order puts all descendants of a segment right behind it,
so "everybody below this prompt" is one slice, and attention over the prompt's keys is one unmasked call for the whole group.

    prompt A | completion A0 | completion A1 and the next turn, which continues it | completion A1's other turn | prompt B ...
    [s, e)   [e                                                                              reach)

Two savings follow from what is asked. The last token of a completion predicts nothing that is wanted, so it is not in the
stream unless a later turn has it. And a sequence that is the beginning of another one is in it already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .forest import Forest, Node, Place, Tokens
from .worth import keep_what_pays

Index: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, end) of the stream, the first at position `position` of its sequences; descendants are rows [end, reach).

    parent: index of the segment before it in its sequences, -1 for the first; always a smaller index than its own.
    """

    start: int
    end: int
    reach: int
    position: int
    parent: int = -1

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class PackedLayout:
    """Where every token of a batch is.

    token_ids, positions: (T,) the stream and each token's position in its own sequence.
    segments: in the order of the stream, which they fill without gaps.
    predict_rows: (N,) for each completion token, in the caller's order, the row whose hidden state predicts it.
    targets: (N,) the token ids to be predicted.
    spans: rows [start, end) of each owner, ascending, which fill the stream; where there are no owners all are of owner 0.
    """

    token_ids: Tokens
    positions: Index
    segments: tuple[Segment, ...]
    predict_rows: Index
    targets: Tokens
    spans: Mapping[int, tuple[int, int]] = field(default_factory=lambda: {})

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
        owners: Sequence[int] | None = None,
    ) -> PackedLayout:
        """Pack K groups: prompts[k], (P,) with P >= 1, and its completions[k], each (C,) with C >= 0.

        share_prefixes: compute once whatever sequences have in common, where that saves more than it costs (`worth`); a prompt
        with several completions always. False: share equal prompts, and equal completions of them, and nothing else; then the
        way a sequence is cut, prompt from completion, depends on the sequence alone, which bitwise reproducibility needs.
        owners: (K,) whose each group is, for models that are not the same for all: nothing is shared between two owners, and
        each has rows of its own, side by side.
        """
        groups: dict[int, list[int]] = {}
        for k in range(len(prompts)):
            groups.setdefault(0 if owners is None else owners[k], []).append(k)
        plant = _planted if share_prefixes else _apart
        forests: dict[int, Forest] = {}
        ends: _Ends = [[] for _ in prompts]
        for owner, members in sorted(groups.items()):
            forests[owner] = Forest()
            planted = plant(forests[owner], [prompts[k] for k in members], [completions[k] for k in members])
            for k, places in zip(members, planted, strict=True):
                ends[k] = places
        return _laid(forests, ends, [len(p) for p in prompts], completions)


# the place of the row that predicts each completion's last token, [k][g]; None where a completion is empty
_Ends: TypeAlias = "list[list[Place | None]]"


def _planted(forest: Forest, prompts: Sequence[Tokens], completions: Sequence[Sequence[Tokens]]) -> _Ends:
    ends: _Ends = []
    befores: list[Place] = []
    for prompt, group in zip(prompts, completions, strict=True):
        asked = any(len(c) for c in group)
        before = forest.add(forest.start, prompt) if asked else forest.start
        befores.append(before)
        ends.append([forest.add(before, c[:-1]) if len(c) else None for c in group])
    readers = Counter[Node]()
    for before, places in zip(befores, ends, strict=True):
        readers[before.resolved().node] += sum(place is not None for place in places)
    keep_what_pays(forest, {node for node, sequences in readers.items() if sequences > 1})
    return ends


def _apart(forest: Forest, prompts: Sequence[Tokens], completions: Sequence[Sequence[Tokens]]) -> _Ends:
    known: dict[bytes, Place] = {}
    below: dict[tuple[bytes, bytes], Place] = {}
    ends: _Ends = []
    for prompt, group in zip(prompts, completions, strict=True):
        key = prompt.tobytes()
        places: list[Place | None] = []
        for completion in group:
            if len(completion) == 0:
                places.append(None)
                continue
            if key not in known:
                known[key] = forest.add_apart(forest.start, prompt)
            own = key, completion[:-1].tobytes()
            if own not in below:
                below[own] = forest.add_apart(known[key], completion[:-1])
            places.append(below[own])
        ends.append(places)
    return ends


def _laid(
    forests: Mapping[int, Forest], ends: _Ends, prompt_lengths: Sequence[int], completions: Sequence[Sequence[Tokens]]
) -> PackedLayout:
    """The forests as a stream, and in it the rows that predict."""
    trees = [list(forest.nodes()) for forest in forests.values()]
    nodes = list(chain.from_iterable(trees))
    sizes = np.array([len(node.tokens) for node in nodes], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    index: dict[Node | None, int] = {forest.root: -1 for forest in forests.values()}
    index.update((node, i) for i, node in enumerate(nodes))
    reach: list[int] = (starts + sizes).tolist()
    for i in range(len(nodes) - 1, -1, -1):  # children come after their parents
        if (above := index[nodes[i].parent]) >= 0:
            reach[above] = max(reach[above], reach[i])
    segments = tuple(
        Segment(start, start + len(node.tokens), reach[i], node.depth, index[node.parent])
        for i, (node, start) in enumerate(zip(nodes, starts.tolist(), strict=True))
    )
    rows: list[Index] = [np.zeros(0, np.int64)]
    targets: list[Tokens] = [np.zeros(0, np.int32)]
    for places, before, group in zip(ends, prompt_lengths, completions, strict=True):
        for place, completion in zip(places, group, strict=True):
            if place is not None:
                rows += _rows(place, before - 1, segments, index)
                targets.append(completion)
    bounds = np.cumsum([0, *(sum(len(node.tokens) for node in tree) for tree in trees)]).tolist()
    return PackedLayout(
        token_ids=np.concatenate([np.zeros(0, np.int32), *(node.tokens for node in nodes)], dtype=np.int32),
        positions=np.concatenate([np.zeros(0, np.int64), *(np.arange(n.depth, n.end, dtype=np.int64) for n in nodes)]),
        segments=segments,
        predict_rows=np.concatenate(rows),
        targets=np.concatenate(targets, dtype=np.int32),
        spans=dict(zip(forests, pairwise(bounds), strict=True)),
    )


def _rows(place: Place, first: int, segments: Sequence[Segment], index: Mapping[Node | None, int]) -> list[Index]:
    """Rows at positions `first` and on, up to the place, along its path."""
    place = place.resolved()
    at, stop = index[place.node], place.length
    parts: list[Index] = []
    while stop > first:
        segment = segments[at]
        shift = segment.start - segment.position
        parts.append(np.arange(max(first, segment.position) + shift, stop + shift, dtype=np.int64))
        at, stop = segment.parent, segment.position
    return parts[::-1]
