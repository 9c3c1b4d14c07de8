"""Cuts of a request that have their beginnings in common go into one batch, where those are computed once.

A rollout's later turns hold its earlier ones, samples of one prompt hold the prompt: sent as groups of their own, each would be
priced, and perhaps batched, as if there were no others. As many of a family as fit a batch are put one behind another, and each
costs what the engine would compute for it beside those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from grpo_server.engine.contract import Tally
from grpo_server.scheduler.cutting import Cut

# What a member must save by being one, as a share of its tokens: who saves less is of more use to fill a batch up.
_LEAST_SAVED = 1 / 8


def together(cuts: Sequence[Cut], max_tokens: int, max_bytes: int | None, tally: Callable[[], Tally]) -> list[Cut]:
    """The cuts, families side by side: those that `follow` are computed in the batch of the one before them.

    max_tokens, max_bytes: what a batch holds; memory is counted as if there were nothing in common. tally: begins to count the
    tokens of a batch.
    """
    order = sorted(range(len(cuts)), key=lambda i: _beginning(cuts[i]))
    families: list[list[Cut]] = []
    first: list[int] = []  # of each family: who comes first in the request
    count, room, room_bytes = tally(), 0, 0
    for n, i in enumerate(order):
        cut = cuts[i]
        if n and _may_save(cut, before := cuts[order[n - 1]]):
            if len(families[-1]) == 1:
                count = tally()
                count.add(before.piece)
            added = count.add(cut.piece)
            fits = added <= room and (max_bytes is None or cut.bytes <= room_bytes)
            if fits and cut.tokens - added >= _LEAST_SAVED * cut.tokens:
                families[-1].append(replace(cut, tokens=added, follows=True))
                first[-1] = min(first[-1], i)
                room, room_bytes = room - added, room_bytes - cut.bytes
                continue
        families.append([cut])
        first.append(i)
        room, room_bytes = max_tokens - cut.tokens, (max_bytes or 0) - cut.bytes
    return [cut for _, family in sorted(zip(first, families, strict=True), key=lambda f: f[0]) for cut in family]


def _beginning(cut: Cut) -> bytes:
    """Sorts as the sequences do: what continues another one comes behind it."""
    return b"".join(ids.astype(">i4").tobytes() for ids in (cut.piece.prompt, cut.piece.completions[0]))


def _may_save(cut: Cut, before: Cut) -> bool:
    """Whether it is worth counting: the prompts are equal as far as would have to be saved at least."""
    length = min(len(cut.piece.prompt), len(before.piece.prompt), 1 + int(_LEAST_SAVED * cut.tokens))
    return bool((cut.piece.prompt[:length] == before.piece.prompt[:length]).all())
