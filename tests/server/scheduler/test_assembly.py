"""An answer is put together from pieces in any order, whatever lies between their completions."""

from __future__ import annotations

import numpy as np
import pytest
from grpo_client.protocol import CompletionScores, Group, ReferenceInfo, ScoreRequest, ScoreResult, Status, Usage
from grpo_server.engine.contract import PieceScores
from grpo_server.scheduler.assembly import Assembly
from server_fakes import FakeEngine, ids

LENGTHS = (2, 0, 3, 1, 4)
REQUEST = ScoreRequest((Group(ids(1), tuple(ids(*range(n)) for n in LENGTHS)),), extras=frozenset({"rank"}), top_k=2)
STARTS = np.cumsum((0, *LENGTHS))


def piece(places: tuple[int, ...], status: Status = Status.OK) -> PieceScores:
    """Figures that say where they belong: token t of the answer has log-prob -t."""
    at = np.concatenate([np.arange(STARTS[p], STARTS[p + 1]) for p in places]).astype(np.int32)
    figures = {
        "rank": at,
        "top_ids": np.stack([at, at + 1], 1),
        "top_logprobs": -np.stack([at, at], 1).astype(np.float32),
    }
    return PieceScores(-at.astype(np.float32), np.full(len(places), status, np.uint8), figures)


def finished(assembly: Assembly) -> ScoreResult:
    info: ReferenceInfo = FakeEngine().info
    return assembly.finish(info, Usage())


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 1, 2, 3, 4)],  # all at once
        [(2, 3, 4), (0, 1)],  # side by side, the later first
        [(0, 2), (3, 4)],  # an empty completion lies between, which takes no place
        [(0, 3), (2, 4)],  # others lie between
        [(4,), (3,), (2,), (0,)],
    ],
)
def test_every_completion_gets_what_is_its_own(parts: list[tuple[int, ...]]) -> None:
    assembly = Assembly(REQUEST)
    for places in parts:
        assembly.place(places, piece(places))
    result = finished(assembly)
    at = np.arange(sum(LENGTHS))
    np.testing.assert_array_equal(result.logprobs, -at.astype(np.float32))
    np.testing.assert_array_equal(result.extras["rank"], at)
    np.testing.assert_array_equal(result.extras["top_ids"], np.stack([at, at + 1], 1))
    np.testing.assert_array_equal(result.extras["top_logprobs"], -np.stack([at, at], 1))
    assert result.status.tolist() == [Status.OK] * len(LENGTHS)


def test_a_status_stays_with_its_completion() -> None:
    assembly = Assembly(REQUEST)
    assembly.place((0, 3), piece((0, 3), Status.NONFINITE))
    assembly.place((2, 4), piece((2, 4)))
    assert finished(assembly).status.tolist() == [1, 0, 0, 1, 0]


def test_what_was_placed_can_be_taken_out_one_by_one_and_placed_elsewhere() -> None:
    one, other = Assembly(REQUEST), Assembly(REQUEST)
    one.place((0, 1, 2, 3, 4), piece((0, 1, 2, 3, 4), Status.NONFINITE))
    for place in range(len(LENGTHS)):
        taken = one.completion(place)
        assert isinstance(taken, CompletionScores)
        assert len(taken) == LENGTHS[place]
        other.place((place,), taken)
    for name in ("logprobs", "status"):
        np.testing.assert_array_equal(getattr(finished(other), name), getattr(finished(one), name))
    np.testing.assert_array_equal(finished(other).extras["top_ids"], finished(one).extras["top_ids"])


@pytest.mark.parametrize("wrong", [(2,), (2, 3, 4), (3, 4)])
def test_scores_of_another_number_are_no_answer(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scores for 4 tokens of 2 completions"):
        Assembly(REQUEST).place((2, 3), piece(wrong))


def test_a_figure_that_was_asked_for_must_come() -> None:
    scores = piece((2, 3))
    del scores.extras["rank"]
    with pytest.raises(KeyError, match="rank"):
        Assembly(REQUEST).place((2, 3), scores)
