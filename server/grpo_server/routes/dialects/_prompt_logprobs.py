"""vLLM's `prompt_logprobs`: for every position a dictionary from token id to its log-prob, rank and text.

null for the first position, which nothing predicts. The token that is there is always in it, whatever its rank; ranks
count from 1. With it come the k best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from grpo_client.wire_json.writer import in_steps, rows_of

from grpo_server.routes.dialects._sequence_values import SequenceScores

# Ids that are counted by NumPy faster than by a set.
MANY = 2**12


def prompt_logprobs(scores: SequenceScores, strings: Mapping[int, str | None]) -> Iterator[bytes]:
    """(n,) entries, as `wire_json.json_chunks` takes them, for a sequence scored from position 1 with its ranks. strings: text
    of each id, see `ids_shown`."""
    return in_steps(chain([None], _positions(scores, strings)), figures=3 * (1 + scores.top_ids.shape[1]))


def _positions(scores: SequenceScores, strings: Mapping[int, str | None]) -> Iterator[dict[str, dict[str, Any]]]:
    def entry(token: int, logprob: float, rank: int) -> dict[str, Any]:
        return {"logprob": logprob, "rank": rank, "decoded_token": strings.get(token)}

    rows = rows_of(scores.ids[1:], scores.logprobs, scores.rank, scores.top_ids, scores.top_logprobs)
    for token, logprob, rank, top_ids, top_logprobs in rows:
        position = {str(token): entry(token, logprob, rank + 1)}
        for place, (top_id, top_logprob) in enumerate(zip(top_ids, top_logprobs, strict=True), start=1):
            position.setdefault(str(top_id), entry(top_id, top_logprob, place))
        yield position


def best_of(scores: SequenceScores, k: int) -> SequenceScores:
    """The same with the k best tokens of each position, where more were computed for another part of the answer."""
    return replace(scores, top_ids=scores.top_ids[:, :k], top_logprobs=scores.top_logprobs[:, :k])


def ids_shown(scores: Sequence[SequenceScores]) -> set[int]:
    """Every id that an answer about these scores may name."""
    shown: set[int] = set()
    for each in scores:
        for ids in (each.ids, each.top_ids.ravel()):
            shown.update(np.unique(ids).tolist() if len(ids) > MANY else ids.tolist())
        if each.next_token is not None:
            shown.add(each.next_token.token_id)
            shown.update(each.next_token.top_ids.tolist())
    return shown
