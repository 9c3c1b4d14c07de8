"""A request is cut into pieces that fit a batch.

A group stays whole where it fits, because its prompt is then computed once. A group that is larger than a batch is cut
between completions and each cut carries the prompt again. A completion is never cut: one that with its prompt is longer
than a batch is a piece by itself, and gets a batch to itself (how long a sequence may be is the context's business).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from grpo_client.protocol import Group, ScoreRequest

from grpo_server.engine.contract import Piece


@dataclass(frozen=True, slots=True)
class Cut:
    """A piece and where its completions stand in the request: places[i] is the flat index of piece.completions[i].

    follows: it is computed in one batch with the cut before it, and adds so many tokens to it (`families`).
    """

    piece: Piece
    places: tuple[int, ...]
    tokens: int
    bytes: int = 0  # peak memory as priced by the engine
    follows: bool = False


def cut(request: ScoreRequest, wanted: Collection[int], max_tokens: int) -> list[Cut]:
    """Cut what is wanted of a request into pieces of at most max_tokens each, or of one completion.

    wanted: flat indices (group by group, completion by completion) of the completions to compute.
    """
    cuts: list[Cut] = []
    place = 0
    for group in request.groups:
        members: list[int] = []
        tokens = len(group.prompt)
        first = place
        for g, completion in enumerate(group.completions):
            if first + g not in wanted:
                continue
            if members and tokens + len(completion) > max_tokens:
                cuts.append(_cut(request, group, first, members, tokens))
                members, tokens = [], len(group.prompt)
            members.append(g)
            tokens += len(completion)
        if members:
            cuts.append(_cut(request, group, first, members, tokens))
        place += len(group.completions)
    return cuts


def _cut(request: ScoreRequest, group: Group, first: int, members: list[int], tokens: int) -> Cut:
    piece = Piece(
        prompt=group.prompt,
        completions=tuple(group.completions[g] for g in members),
        temperature=group.temperature,
        normalizer=request.normalizer,
        extras=request.extras,
        top_k=request.top_k,
        token_ids=None if group.token_ids is None else tuple(group.token_ids[g] for g in members),
        completion_mask=None if group.completion_mask is None else tuple(group.completion_mask[g] for g in members),
    )
    return Cut(piece, tuple(first + g for g in members), tokens)
