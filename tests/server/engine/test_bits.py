"""That bits are claimed only where a score is the same in a full batch, behind and among others, and alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from grpo_numerics import HeadSpec, score_rows
from grpo_server.engine import bits
from grpo_server.engine.bits import Ground, keeps_bits, prepare_ground
from grpo_server.engine.contract import Piece, PieceScores
from grpo_server.engine.heights import Heights
from grpo_server.engine.probe import full_batch, later_turns
from torch import nn

VOCAB, MAX_LENGTH, MOST = 1000, 300, 6144
PIECES = [
    Piece(np.arange(3, dtype=np.int32), (np.arange(4, dtype=np.int32), np.arange(2, dtype=np.int32)), 1.0),
    Piece(np.arange(2, dtype=np.int32), (np.arange(5, dtype=np.int32), np.zeros(0, dtype=np.int32)), 1.0),
]
TOGETHER = [np.full(sum(map(len, piece.completions)), 1.0, np.float32) for piece in PIECES]


def scorer(calls: list[int], error: Callable[[Sequence[Piece]], float]):
    """Scores 1 a token, and so much more in a batch of these pieces."""

    def score(pieces: Sequence[Piece]) -> list[PieceScores]:
        calls.append(sum(p.tokens for p in pieces))
        value = 1.0 + error(pieces)
        return [
            PieceScores(np.full(sum(map(len, p.completions)), value, np.float32), np.zeros(0, np.uint8), {})
            for p in pieces
        ]

    return score


def claim(score: Any, *, tier: Any = "packed", parameters: int = 1000, shares: bool = False, **ground: Any) -> bool:
    made: dict[str, Any] = dict(
        heights=Heights((), 1, coarse=True), head=score_rows, obstacles={}, trusted=False, most=MOST
    )
    parts: Any = SimpleNamespace(vocab_size=VOCAB, parameters=parameters)
    return keeps_bits(Ground(**(made | ground)), tier, parts, score, PIECES, TOGETHER, MAX_LENGTH, shares=shares)


def test_whole_batches_are_full_and_what_was_scored_already_is_not_scored_again() -> None:
    calls: list[int] = []
    assert claim(scorer(calls, lambda _: 0.0))
    *full, first, second = calls
    assert len(full) == 2  # a crowd before the pieces, and all in an order of no design
    assert all(0.95 * MOST < tokens <= MOST for tokens in full)
    assert (first, second) == (5, 7)  # the last completion of each group, alone


def behind(pieces: Sequence[Piece]) -> bool:
    """Whether the crowd comes first."""
    return pieces[-1] is PIECES[0] and pieces[-2] is PIECES[1]


@pytest.mark.parametrize(
    "where",
    [
        lambda pieces: sum(p.tokens for p in pieces) >= 4097,
        lambda pieces: len(pieces) == 1,
        lambda pieces: len(pieces) > 2 and behind(pieces),
        lambda pieces: len(pieces) > 2 and not behind(pieces),
    ],
)
def test_one_other_bit_and_nothing_is_claimed(where: Callable[[Sequence[Piece]], bool]) -> None:
    assert not claim(scorer([], lambda pieces: 2**-20 * where(pieces)))


def test_what_shares_turns_is_tried_among_later_turns_of_the_same_pieces() -> None:
    longer = [Piece(PIECES[1].prompt, PIECES[1].completions[:1], 1.0), PIECES[0]]
    assert [p.prompt.tolist() for p in later_turns(longer, MAX_LENGTH)][1][:7] == [0, 1, 0, 1, 2, 3, 4]
    assert not any(len(p.prompt) > 4 for p in later_turns(longer, 6))
    calls: list[int] = []
    assert claim(scorer(calls, lambda _: 0.0), shares=True)
    assert max(calls) <= MOST
    assert not claim(scorer([], lambda pieces: 2**-20 * any(len(p.prompt) in (7, 8) for p in pieces)), shares=True)


def test_where_products_are_trusted_the_batch_is_as_large_as_a_second_allows() -> None:
    small: list[int] = []
    large: list[int] = []
    assert claim(scorer(small, lambda _: 0.0), trusted=True)
    assert small[0] > 0.95 * MOST
    assert claim(scorer(large, lambda _: 0.0), trusted=True, parameters=10**8)
    assert max(large) <= 500


def test_an_obstacle_is_one_in_its_tier_alone() -> None:
    score = scorer([], lambda _: 0.0)
    assert not claim(score, obstacles={"packed": "a product"})
    assert claim(score, obstacles={"packed": "a product"}, tier="plain")
    assert not claim(score, heights=None)


def parts_of(body: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        modules=tuple(body.modules()),
        weight=torch.randn(64, 16, generator=generator),
        spec=HeadSpec(),
        device=torch.device("cpu"),
        widths=(16,),
        parameters=1,
    )


def test_a_head_that_depends_on_its_rows_is_given_whole_blocks() -> None:
    def fickle(hidden: torch.Tensor, *args: Any, **asked: Any) -> Any:
        scores = score_rows(hidden, *args, **asked)
        if len(hidden) == 208:
            scores.logprobs[0] += 1e-4
        return scores

    ground = prepare_ground("exact", parts_of(nn.Sequential()), fickle, 500)
    assert ground.head is not fickle
    assert "packed" not in ground.obstacles
    hidden, weight = torch.randn(208, 16), torch.randn(64, 16)
    targets = torch.zeros(208, dtype=torch.int64)
    asked: Any = dict(spec=None, temperature=torch.ones(208), normalizer="softmax", want=set(), top_k=0, token_ids=None)
    np.testing.assert_allclose(
        ground.head(hidden, weight, targets, **asked).logprobs, score_rows(hidden, weight, targets).logprobs, atol=1e-5
    )


def test_a_head_that_depends_on_whatever_it_likes_is_an_obstacle_in_every_tier() -> None:
    calls: list[int] = []

    def moody(*args: Any, **asked: Any) -> Any:
        calls.append(1)
        scores = score_rows(*args, **asked)
        scores.logprobs[0] += 1e-4 * len(calls)
        return scores

    ground = prepare_ground("invariant", parts_of(nn.Sequential()), moody, 500)
    assert set(ground.obstacles) == {"packed", "cache", "plain"}


def test_fast_mode_tries_nothing() -> None:
    ground = prepare_ground("fast", parts_of(nn.Sequential()), score_rows, 500)
    assert (ground.heights, ground.head) == (None, score_rows)


@pytest.mark.parametrize("max_length", [2, 25, 128, 4096])
@pytest.mark.parametrize("tokens", [0, 40, 1000, 6144])
def test_a_full_batch_is_full_and_within_the_model(max_length: int, tokens: int) -> None:
    groups = full_batch(VOCAB, max_length, tokens)
    total = sum(p.tokens for p in groups)
    assert tokens - 256 < total <= tokens
    assert all(len(p.prompt) + len(c) <= max_length for p in groups for c in p.completions)


class Packed(nn.Module):
    """A quantised layer as packages write them: its weight is no parameter, and no float."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 8, dtype=torch.int32))


@pytest.mark.parametrize(
    ("layer", "trusted"),
    [
        (nn.Linear(8, 8), True),
        (nn.Linear(8, 8, dtype=torch.bfloat16), False),
        (nn.ParameterDict({"weight": nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)}), False),
        (Packed(), False),
    ],
)
def test_strict_mkl_is_trusted_with_its_own_products_alone(
    layer: nn.Module, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX2,STRICT")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    parts: Any = SimpleNamespace(device=torch.device("cpu"), weight=torch.zeros(4, 8), modules=(layer,))
    assert bits._strict_mkl(parts) is trusted
