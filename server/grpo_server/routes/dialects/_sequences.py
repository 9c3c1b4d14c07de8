"""Whole sequences, as most dialects send them, to the prompts and completions of a ScoreRequest, and their scores back.

A sequence of n ids that is scored from position s on is the prompt ids[:s] with the completion ids[s:]. Sequences that
are equal up to there are completions of one prompt, which is computed once. What has no position before it cannot be
scored: s is at least 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from grpo_client.protocol import Extra, FloatArray, Group, IntArray, ReferenceInfo, ScoreRequest, ScoreResult

from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.routes._common import aside
from grpo_server.scoring import Scoring

# Sequences, and ids of them, that are gone through in a few milliseconds.
FEW = 128
FEW_IDS = 2**17


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """ids: (n,) int32, n >= 1. start: the first position to score, 1 to n. token_ids: (n - start, k) int32 or None. next_ids:
    (k,) ids to score after the end, if the next token is asked for."""

    ids: IntArray
    start: int = 1
    temperature: float = 1.0
    token_ids: IntArray | None = None
    next_ids: IntArray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """Asked ids a position."""
        if self.token_ids is not None:
            return self.token_ids.shape[1]
        return 0 if self.next_ids is None else len(self.next_ids)

    @property
    def rows(self) -> IntArray | None:
        """token_ids; rows of zeros where only next_ids are asked for, since one request asks alike at every position."""
        if self.token_ids is not None or self.next_ids is None:
            return self.token_ids
        return np.zeros((len(self.ids) - self.start, len(self.next_ids)), np.int32)


@dataclass(frozen=True, slots=True)
class NextToken:
    """The likeliest token after the end of a sequence; top_ids and top_logprobs (k,) begin with it. token_logprobs: of the
    asked next_ids."""

    token_id: int
    logprob: float
    top_ids: IntArray
    top_logprobs: FloatArray
    token_logprobs: FloatArray


@dataclass(frozen=True, slots=True)
class SequenceScores:
    """Figures of the positions start to n - 1: logprobs (n - start,), rank the same, the others (n - start, k).

    Ranks count from 0; what was not asked for is empty.
    """

    ids: IntArray
    start: int
    logprobs: FloatArray
    rank: npt.NDArray[np.int32]
    top_ids: IntArray
    top_logprobs: FloatArray
    token_logprobs: FloatArray
    next_token: NextToken | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Names:
    """What the dialect calls things, for its errors: `sequences` takes an index, `top` is the field for how many best."""

    sequences: str = "prompt[{}]"
    top: str = "logprobs"
    token_ids: str = "token_ids"


def id_array(ids: Sequence[int]) -> IntArray:
    """Checked ids (see `_bodies.TokenId`) as a vector."""
    return np.asarray(ids, dtype=np.int32)


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
        _check(service, hosted.info, sequences, names, top_k)
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


def _check(
    service: Service, info: ReferenceInfo, sequences: Sequence[ScoredSequence], names: Names, top_k: int
) -> None:
    """What `check_request` holds of a native request, in the names of this dialect."""
    every = names.sequences.partition("[")[0]
    if not sequences:
        raise _impossible(f"{every} is empty; give at least one sequence", every)
    if len(sequences) > service.config.max_completions:
        raise ServiceError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"{every} has {len(sequences)} sequences; the limit is {service.config.max_completions}; send fewer at once",
            param=every,
        )
    most = min(service.config.max_top_k, info.vocab_size)
    if top_k > most:
        raise _too_wide(top_k, most, names.top)
    for i, sequence in enumerate(sequences):
        name = names.sequences.format(i)
        if len(sequence.ids) == 0:
            raise _impossible(f"{name} is empty; give at least one token", name)
        check_size(service, info, len(sequence.ids), sequence.width, names, i)
        _check_ids(sequence.ids, info.vocab_size, name)
        for asked in (sequence.token_ids, sequence.next_ids):
            if asked is not None:
                _check_ids(asked, info.vocab_size, names.token_ids)


def check_size(service: Service, info: ReferenceInfo, length: int, width: int, names: Names, index: int) -> None:
    """Raises ServiceError for a sequence that is too long, or for more asked ids a position than the server gives: before any
    array of (length, width) is made."""
    name = names.sequences.format(index)
    if length > info.max_length:
        raise ServiceError(
            ErrorCode.CONTEXT_LENGTH,
            f"{name} has {length} tokens; the model's context holds {info.max_length}; shorten it",
            param=name,
        )
    most = min(service.config.max_top_k, info.vocab_size)
    if width > most:
        raise _too_wide(width, most, names.token_ids)


def _too_wide(asked: int, most: int, name: str) -> ServiceError:
    return _impossible(f"{name} asks for {asked} ids a position; this server gives at most {most}", name)


def _check_ids(ids: IntArray, vocab_size: int, name: str) -> None:
    if (wrong := ids[(ids < 0) | (ids >= vocab_size)]).size:
        raise _impossible(f"{name} holds the id {wrong[0]}; the vocabulary has {vocab_size} ids, 0 and up", name)


def _impossible(message: str, param: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_VALUE, message, param=param)
