"""Cutting: whole groups where they fit, between completions where they do not, and never through one."""

from __future__ import annotations

from grpo_client.protocol import Group, ScoreRequest
from grpo_server.scheduler.cutting import cut
from hypothesis import given, settings
from hypothesis import strategies as st
from server_fakes import ask, ids, tokens


def everything(request: ScoreRequest) -> set[int]:
    return set(range(len(request.completion_lengths)))


def test_a_group_that_fits_stays_whole() -> None:
    request = ask(10, 5, 5, 5)
    [only] = cut(request, everything(request), max_tokens=25)
    assert only.tokens == 25
    assert only.places == (0, 1, 2)


def test_a_larger_group_is_cut_between_completions_and_carries_its_prompt_again() -> None:
    request = ask(10, 5, 5, 5)
    first, second = cut(request, everything(request), max_tokens=24)
    assert [first.places, second.places] == [(0, 1), (2,)]
    assert [first.tokens, second.tokens] == [20, 15]
    assert second.piece.prompt is request.groups[0].prompt


def test_only_what_is_wanted_is_cut() -> None:
    request = ask(10, 5, 6, 7, groups=2)
    cuts = cut(request, {1, 5}, max_tokens=100)
    assert [c.places for c in cuts] == [(1,), (5,)]
    assert [len(c.piece.completions[0]) for c in cuts] == [6, 7]


def test_a_completion_longer_than_a_batch_is_a_piece_by_itself() -> None:
    request = ScoreRequest((Group(tokens(10), (tokens(5), tokens(70), tokens(6))),))
    assert [(c.places, c.tokens) for c in cut(request, everything(request), 64)] == [((0,), 15), ((1,), 80), ((2,), 16)]


def test_a_cut_carries_all_that_its_completions_were_asked_with() -> None:
    group = Group(ids(1), (ids(2), ids(3)), 0.7, token_ids=(ids(4, 5).reshape(1, 2), ids(6, 7).reshape(1, 2)))
    request = ScoreRequest((group,), "stablemax", frozenset({"rank"}), top_k=3)
    [only] = cut(request, {1}, max_tokens=10)
    piece = only.piece
    assert (piece.temperature, piece.normalizer, piece.extras, piece.top_k) == (0.7, "stablemax", {"rank"}, 3)
    assert piece.token_ids is not None
    assert piece.token_ids[0].tolist() == [[6, 7]]


shapes = st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(0, 20), max_size=6)), min_size=1, max_size=5)


@settings(deadline=None)
@given(shapes, st.integers(40, 90))
def test_every_completion_is_in_exactly_one_cut_and_no_cut_is_too_large(
    shapes: list[tuple[int, list[int]]], max_tokens: int
) -> None:
    request = ScoreRequest(tuple(Group(tokens(p), tuple(tokens(c) for c in cs)) for p, cs in shapes))
    cuts = cut(request, everything(request), max_tokens)
    assert [place for c in cuts for place in c.places] == sorted(everything(request))
    assert all(c.tokens == c.piece.tokens <= max_tokens for c in cuts)
    lengths = request.completion_lengths
    for c in cuts:
        assert [len(x) for x in c.piece.completions] == [lengths[place] for place in c.places]
