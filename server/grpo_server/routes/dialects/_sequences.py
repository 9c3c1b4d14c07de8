"""Whole sequences, as most dialects send them, to the prompts and completions of a ScoreRequest, and their scores back.

A sequence of n ids that is scored from position s on is the prompt ids[:s] with the completion ids[s:]. Sequences that
are equal up to there are completions of one prompt, which is computed once. What has no position before it cannot be
scored: s is at least 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from grpo_client.protocol import Extra, Group, ScoreRequest, ScoreResult

from grpo_server.engine.contract import Hosted
from grpo_server.lifecycle import Service
from grpo_server.routes._common import aside
from grpo_server.routes.dialects._sequence_checks import Names, check_sequences
from grpo_server.routes.dialects._sequence_values import NextToken, ScoredSequence, SequenceScores
from grpo_server.scoring import Scoring

# Sequences, and ids of them, that are gone through in a few milliseconds.
FEW = 128
FEW_IDS = 2**17


async def score_sequences(
    service: Service,
    scoring: Scoring,
    hosted: Hosted,
    sequences: Sequence[ScoredSequence],
    names: Names,
    *,
    top_k: int = 0,
    extras: Sequence[Extra] = (),
    next_token: bool = False,
) -> list[SequenceScores]:
    """Score them all, in the order given. next_token: also find what would come after each, where the context has room.

    hosted: who shall answer. Raises ServiceError in the dialect's own words, and what `Scoring.score_checked` raises.
    """
    much = are_many(sequences)
    width = max(top_k, 1) if next_token else top_k

    def question() -> tuple[list[int], ScoreRequest]:
        check_sequences(service, hosted.info, sequences, names, top_k)
        longest = hosted.info.max_length
        asked = [_with_room_for_next(s) if next_token and len(s.ids) < longest else s for s in sequences]
        order, groups = _grouped(asked)
        return order, ScoreRequest(tuple(groups), extras=frozenset(extras), top_k=width)

    order, request = await aside(service, much, question)
    result = await scoring.score_checked(request, hosted)
    return await aside(service, much, lambda: _answers(sequences, order, result, top_k))


def are_many(sequences: Sequence[Any]) -> bool:
    """Whether going through them takes longer than an event loop should be held. Cheap itself."""
    return len(sequences) > FEW or sum(map(len, sequences)) > FEW_IDS


def _answers(
    sequences: Sequence[ScoredSequence], order: Sequence[int], result: ScoreResult, top_k: int
) -> list[SequenceScores]:
    answers = dict(zip(order, result.completions(), strict=True))
    out: list[SequenceScores] = []
    for i, sequence in enumerate(sequences):
        n = len(sequence.ids) - sequence.start
        answer = answers[i]
        extras_of = cast("Mapping[str, npt.NDArray[Any]]", answer.extras)
        figures = {name: values[:n] for name, values in extras_of.items()}
        out.append(
            SequenceScores(
                ids=sequence.ids,
                start=sequence.start,
                logprobs=answer.logprobs[:n],
                rank=figures.get("rank", np.empty(0, np.int32)),
                top_ids=figures.get("top_ids", np.empty((n, 0), np.int32))[:, :top_k],
                top_logprobs=figures.get("top_logprobs", np.empty((n, 0), np.float32))[:, :top_k],
                token_logprobs=figures.get("token_logprobs", np.empty((n, 0), np.float32)),
                next_token=_next(extras_of) if len(answer.logprobs) > n else None,
            )
        )
    return out


def _with_room_for_next(sequence: ScoredSequence) -> ScoredSequence:
    """One more position, so that the distribution after the last token is computed. The id there does not matter: only
    the best tokens of that row are read. The last id of the sequence is sure to be in the vocabulary."""
    rows = sequence.rows
    if rows is not None:
        last = np.zeros(rows.shape[1], np.int32) if sequence.next_ids is None else sequence.next_ids
        rows = np.concatenate([rows, last[None]])
    return replace(sequence, ids=np.append(sequence.ids, sequence.ids[-1]), token_ids=rows)


def _next(figures: Mapping[str, npt.NDArray[Any]]) -> NextToken:
    ids, logprobs = figures["top_ids"][-1], figures["top_logprobs"][-1]
    asked = figures["token_logprobs"][-1] if "token_logprobs" in figures else np.empty(0, np.float32)
    return NextToken(int(ids[0]), float(logprobs[0]), ids, logprobs, asked)


def _grouped(sequences: Sequence[ScoredSequence]) -> tuple[list[int], list[Group]]:
    """Groups of one prompt each, and for every completion, in their order, the index of its sequence."""
    members: dict[tuple[bytes, float], list[int]] = {}
    for i, s in enumerate(sequences):
        members.setdefault((s.ids[: s.start].tobytes(), s.temperature), []).append(i)
    groups: list[Group] = []
    for (_, temperature), indices in members.items():
        first = sequences[indices[0]]
        rows = [sequences[i].rows for i in indices]
        groups.append(
            Group(
                first.ids[: first.start],
                tuple(sequences[i].ids[sequences[i].start :] for i in indices),
                temperature,
                None if any(r is None for r in rows) else tuple(r for r in rows if r is not None),
            )
        )
    return [i for indices in members.values() for i in indices], groups
