"""A whole sequence that is to be scored, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from grpo_client.protocol import FloatArray, IntArray


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
