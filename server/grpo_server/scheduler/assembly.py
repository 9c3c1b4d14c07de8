"""Puts a request's answer together from pieces that come back in any order, from the engine or from the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from grpo_client.protocol import EXTRA_ARRAYS, Normalizer, ReferenceInfo, ScoreRequest, ScoreResult, Status, Usage

from grpo_server.engine.contract import PieceScores
from grpo_server.scheduler.cache import CompletionResult


def extra_shapes(request: ScoreRequest) -> dict[str, tuple[int, ...]]:
    """The extra arrays that the request asks for, each with its shape behind the token axis: () or (k,)."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(sorted(request.extras), ())
    if request.top_k:
        shapes["top_ids"] = shapes["top_logprobs"] = (request.top_k,)
    if any(group.token_ids is not None for group in request.groups):
        widths = (ids.shape[1] for group in request.groups for ids in group.token_ids or () if len(ids))
        shapes["token_logprobs"] = (next(widths, 0),)
    return shapes


def host_bytes(request: ScoreRequest) -> int:
    """Bytes that a request and its answer hold in the server's memory, from acceptance to the last byte sent."""
    tokens = int(request.completion_lengths.sum())
    per_token = 4 + sum(
        int(np.dtype(EXTRA_ARRAYS[name]).itemsize * np.prod(shape, dtype=np.int64))
        for name, shape in extra_shapes(request).items()
    )
    asked = sum(
        group.prompt.nbytes + sum(c.nbytes for c in group.completions) + sum(t.nbytes for t in group.token_ids or ())
        for group in request.groups
    )
    return tokens * per_token + asked


def split(scores: PieceScores, lengths: Sequence[int]) -> Iterator[CompletionResult]:
    """The results of a piece's completions, as views; lengths: tokens of each."""
    end = 0
    for length, status in zip(lengths, scores.status, strict=True):
        start, end = end, end + length
        yield CompletionResult(
            scores.logprobs[start:end],
            int(status),
            {name: values[start:end] for name, values in scores.extras.items()},
        )


class Assembly:
    """The flat arrays of one answer, filled completion by completion. N tokens, S completions, K groups.

    lengths: (S,) tokens of each completion. What it takes to finish is made at the start, which may be on another thread.
    """

    def __init__(self, request: ScoreRequest) -> None:
        self._normalizer: Normalizer = request.normalizer
        self._lengths = request.completion_lengths
        self._group_sizes = request.group_sizes
        self._temperature = np.array([g.temperature for g in request.groups], dtype=np.float32)
        self.prompt_tokens = sum(len(g.prompt) for g in request.groups)
        ends = np.cumsum(self._lengths, dtype=np.int64)
        self.lengths: list[int] = self._lengths.tolist()
        self._ends: list[int] = ends.tolist()
        self.completion_tokens = tokens = self._ends[-1] if self._ends else 0
        self._logprobs = np.zeros(tokens, dtype=np.float32)
        self._status = np.full(len(self._lengths), Status.OK, dtype=np.uint8)
        self._extras: dict[str, npt.NDArray[np.generic]] = {
            name: np.zeros((tokens, *shape), dtype=EXTRA_ARRAYS[name]) for name, shape in extra_shapes(request).items()
        }

    def place(self, index: int, result: CompletionResult) -> None:
        """Put the completion with this flat index where it belongs."""
        end = self._ends[index]
        start = end - self.lengths[index]
        self._logprobs[start:end] = result.logprobs
        self._status[index] = result.status
        for name, values in self._extras.items():
            values[start:end] = result.extras[name]

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
        )
