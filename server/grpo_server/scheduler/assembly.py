"""Puts a request's answer together from pieces that come back in any order, from the engine or from the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from grpo_client.protocol import (
    CompletionScores,
    IntArray,
    Normalizer,
    ReferenceInfo,
    ScoreRequest,
    ScoreResult,
    Status,
    Usage,
    figure_dtype,
    figure_shapes,
    put_rounded,
)

from grpo_server.engine.contract import PieceScores


def extra_shapes(request: ScoreRequest, hidden_size: int = 0) -> dict[str, tuple[int, ...]]:
    """The extra arrays that the request asks for, each with its shape behind the token axis: () or (k,)."""
    return figure_shapes(request.extras, request.top_k, request.asked_ids, hidden_size)


def host_bytes(request: ScoreRequest, hidden_size: int = 0) -> int:
    """Bytes that a request and its answer hold in the server's memory, from acceptance to the last byte sent."""
    tokens = int(request.completion_lengths.sum())
    per_token = 4 + sum(
        int(figure_dtype(name, request.top_dtype).itemsize * np.prod(shape, dtype=np.int64))
        for name, shape in extra_shapes(request, hidden_size).items()
    )
    asked = sum(
        group.prompt.nbytes + sum(c.nbytes for c in group.completions) + sum(t.nbytes for t in group.token_ids or ())
        for group in request.groups
    )
    return tokens * per_token + asked


class Assembly:
    """The flat arrays of one answer, filled piece by piece. N tokens, S completions, K groups.

    hidden_size: numbers in a hidden state of the model. lengths: (S,) tokens of each completion. What it takes to finish is
    made at the start, which may be on another thread.
    """

    def __init__(self, request: ScoreRequest, hidden_size: int = 0) -> None:
        self._normalizer: Normalizer = request.normalizer
        self._lengths = request.completion_lengths
        self._group_sizes = request.group_sizes
        self._mask = request.completion_mask
        self._temperature = np.array([g.temperature for g in request.groups], dtype=np.float32)
        self.prompt_tokens = sum(len(g.prompt) for g in request.groups)
        self._starts = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        self.lengths: list[int] = self._lengths.tolist()
        self.completion_tokens = tokens = sum(self.lengths)
        self._logprobs = np.zeros(tokens, dtype=np.float32)
        self._status = np.full(len(self._lengths), Status.OK, dtype=np.uint8)
        self._extras: dict[str, npt.NDArray[np.generic]] = {
            name: np.zeros((tokens, *shape), dtype=figure_dtype(name, request.top_dtype))
            for name, shape in extra_shapes(request, hidden_size).items()
        }

    def place(self, places: Sequence[int], scores: PieceScores | CompletionScores) -> None:
        """Put the completions with these flat indices, in ascending order, where they belong. Raises ValueError for scores that
        are not as many, KeyError for a figure that is missing."""
        tokens = sum(map(self.lengths.__getitem__, places))
        if len(scores.logprobs) != tokens or np.size(scores.status) != len(places):
            raise ValueError(f"{len(scores.logprobs)} scores for {tokens} tokens of {len(places)} completions")
        into = self._rows(np.asarray(places), tokens)
        self._status[list(places)] = scores.status
        self._logprobs[into] = scores.logprobs
        for name, values in self._extras.items():
            put_rounded(values, into, scores.extras[name])

    def _rows(self, places: IntArray, tokens: int) -> slice | npt.NDArray[np.int64]:
        """Where the tokens of these completions stand: side by side, unless something known before lies between."""
        lengths = self._lengths[places]
        starts = self._starts[places]
        first, end = int(starts[0]), int(starts[-1] + lengths[-1])
        if end - first == tokens:
            return slice(first, end)
        return np.arange(tokens) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)

    def completion(self, place: int) -> CompletionScores:
        """The figures of one completion that was placed, as views."""
        start = int(self._starts[place])
        own = slice(start, start + self.lengths[place])
        extras = {name: values[own] for name, values in self._extras.items()}
        return CompletionScores(Status(int(self._status[place])), self._logprobs[own], extras)

    def finish(self, reference: ReferenceInfo, usage: Usage) -> ScoreResult:
        return ScoreResult(
            reference=reference,
            normalizer=self._normalizer,
            temperature=self._temperature,
            group_sizes=self._group_sizes,
            completion_lengths=self._lengths,
            logprobs=self._logprobs,
            status=self._status,
            extras=self._extras,
            usage=usage,
            completion_mask=self._mask,
        )
