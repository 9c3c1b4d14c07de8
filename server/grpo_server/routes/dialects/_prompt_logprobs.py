"""vLLM's `prompt_logprobs`: for every position a dictionary from token id to its log-prob, rank and text.

null for the first position, which nothing predicts. The token that is there is always in it, whatever its rank; ranks
count from 1. With it come the k best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from grpo_server.routes.dialects._sequences import SequenceScores

Position = dict[str, dict[str, Any]] | None


def prompt_logprobs(scores: SequenceScores, strings: Mapping[int, str | None]) -> list[Position]:
    """(n,) entries for a sequence scored from position 1 with its ranks. strings: text of each id, see `ids_shown`."""

    def entry(token: int, logprob: float, rank: int) -> dict[str, Any]:
        return {"logprob": logprob, "rank": rank, "decoded_token": strings.get(token)}

    positions: list[Position] = [None]
    rows = zip(
        scores.ids[1:].tolist(),
        scores.logprobs.tolist(),
        scores.rank.tolist(),
        scores.top_ids.tolist(),
        scores.top_logprobs.tolist(),
        strict=True,
    )
    for token, logprob, rank, top_ids, top_logprobs in rows:
        position = {str(token): entry(token, logprob, rank + 1)}
        for place, (top_id, top_logprob) in enumerate(zip(top_ids, top_logprobs, strict=True), start=1):
            position.setdefault(str(top_id), entry(top_id, top_logprob, place))
        positions.append(position)
    return positions


def best_of(scores: SequenceScores, k: int) -> SequenceScores:
    """The same with the k best tokens of each position, where more were computed for another part of the answer."""
    return replace(scores, top_ids=scores.top_ids[:, :k], top_logprobs=scores.top_logprobs[:, :k])


def ids_shown(scores: SequenceScores) -> Iterator[int]:
    """Every id that an answer about these scores may name."""
    yield from scores.ids.tolist()
    yield from scores.top_ids.ravel().tolist()
    if scores.next_token is not None:
        yield scores.next_token.token_id
        yield from scores.next_token.top_ids.tolist()
