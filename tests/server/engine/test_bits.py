"""That bits are claimed only where a score is the same in a batch, in its reverse, and alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from grpo_server.engine.bits import keeps_bits
from grpo_server.engine.config import EngineConfig
from grpo_server.engine.contract import Piece, PieceScores

PIECES = [
    Piece(np.arange(3, dtype=np.int32), (np.arange(4, dtype=np.int32), np.arange(2, dtype=np.int32)), 1.0),
    Piece(np.arange(2, dtype=np.int32), (np.arange(5, dtype=np.int32), np.zeros(0, dtype=np.int32)), 1.0),
]


def scorer(calls: list[int], in_batches: float, last_alone: float):
    """Scores 1 a token; in a batch of several groups, and of one completion alone, off by so much."""

    def score(pieces: Sequence[Piece]) -> list[PieceScores]:
        calls.append(len(pieces))
        value = 1.0 + (in_batches if len(pieces) > 1 else last_alone)
        return [
            PieceScores(np.full(sum(map(len, p.completions)), value, np.float32), np.zeros(0, np.uint8), {})
            for p in pieces
        ]

    return score


def claim(score: Any, together: float = 1.0) -> bool:
    config = EngineConfig("a model", batch_rows=64)
    known = [np.full(sum(map(len, piece.completions)), together, np.float32) for piece in PIECES]
    parts: Any = None  # of no interest where all batches have one height
    return keeps_bits(config, parts, score, PIECES, known)


def test_a_batch_that_was_scored_already_is_not_scored_again() -> None:
    assert claim(scorer(calls := [], 0.0, 0.0))
    assert calls == [2, 1, 1]  # the reverse, and the last completion of each group


@pytest.mark.parametrize(("in_batches", "alone", "together"), [(2**-20, 0.0, 1.0), (0.0, 2**-20, 1.0), (0.0, 0.0, 1.5)])
def test_one_other_bit_and_nothing_is_claimed(in_batches: float, alone: float, together: float) -> None:
    assert not claim(scorer([], in_batches, alone), together)
