"""Cuts that begin alike: one batch, one price, and the request's order for all that have nothing in common."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from grpo_client.protocol import Group, ScoreRequest
from grpo_server.engine.tallies import Beginnings, EqualPrompts, EveryPiece
from grpo_server.scheduler.cutting import Cut, cut
from grpo_server.scheduler.families import together
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_setup import scheduler
from server_fakes import FakeEngine, expected, ids


def cuts_of(request: ScoreRequest, max_tokens: int) -> list[Cut]:
    return cut(request, set(range(len(request.completion_lengths))), max_tokens)


def turns(samples: int, turns: int, prompt: int, completion: int, tool: int, vocab: int = 60_000) -> ScoreRequest:
    """Turn by turn, one group each: as a trainer sends them that collects a turn of all samples at a time."""
    rng = np.random.default_rng(0)
    contexts = [rng.integers(0, vocab, prompt, dtype=np.int32)] * samples
    groups: list[Group] = []
    for _ in range(turns):
        answers = [rng.integers(0, vocab, completion, dtype=np.int32) for _ in contexts]
        groups += [Group(c, (a,)) for c, a in zip(contexts, answers, strict=True)]
        said = [rng.integers(0, vocab, tool, dtype=np.int32) for _ in contexts]
        contexts = [np.concatenate(parts) for parts in zip(contexts, answers, said, strict=True)]
    return ScoreRequest(tuple(groups))


def batches(cuts: list[Cut]) -> list[list[Cut]]:
    out: list[list[Cut]] = []
    for c in cuts:
        if c.follows:
            out[-1].append(c)
        else:
            out.append([c])
    return out


def test_four_turns_of_eight_samples_are_one_batch_at_the_price_of_their_tree() -> None:
    request = turns(samples=8, turns=4, prompt=100, completion=40, tool=20)
    [family] = batches(together(cuts_of(request, 6144), 6144, None, Beginnings))
    assert sum(c.tokens for c in family) == 100 + 8 * (4 * 40 + 3 * 20)
    assert sorted(place for c in family for place in c.places) == list(range(32))


def test_a_family_larger_than_a_batch_is_parted_where_little_is_computed_twice() -> None:
    request = turns(samples=8, turns=4, prompt=100, completion=40, tool=20)
    parts = batches(together(cuts_of(request, 600), 600, None, Beginnings))
    assert [sum(c.tokens for c in part) for part in parts] == [580, 580, 540, 580]
    # of two samples each; three times the prompt and a first answer are computed once more
    assert 3 * 580 + 540 == 100 + 8 * 220 + 3 * (100 + 40)


def test_memory_bounds_a_family_as_if_it_had_nothing_in_common() -> None:
    request = turns(samples=2, turns=3, prompt=50, completion=10, tool=5)
    priced = [Cut(c.piece, c.places, c.tokens, bytes=10) for c in cuts_of(request, 6144)]
    assert max(sum(c.bytes for c in part) for part in batches(together(priced, 6144, 25, Beginnings))) == 20


def test_what_has_little_in_common_keeps_the_order_of_the_request() -> None:
    rng = np.random.default_rng(1)
    groups = tuple(
        Group(np.concatenate([ids(7, 7), rng.integers(0, 99, 40, dtype=np.int32)]), (ids(1, 2),)) for _ in range(9)
    )
    cuts = cuts_of(ScoreRequest(groups), 500)
    assert together(cuts, 500, None, Beginnings) == cuts


def test_equal_prompts_in_groups_of_their_own_are_a_family_where_only_those_are_shared() -> None:
    prompt, other = np.arange(40, dtype=np.int32), np.arange(60, dtype=np.int32)
    groups = (
        Group(prompt, (ids(1, 2),)),
        Group(other, (ids(5),)),
        Group(prompt, (ids(3),)),
        Group(prompt, (ids(1, 2),)),
    )
    cuts = cuts_of(ScoreRequest(groups), 500)
    assert [[(c.places, c.tokens) for c in part] for part in batches(together(cuts, 500, None, EqualPrompts))] == [
        [((0,), 42), ((3,), 0), ((2,), 1)],
        [((1,), 61)],
    ]
    assert [c.follows for c in together(cuts, 500, None, EveryPiece)] == [False] * 4


shapes = st.lists(
    st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.lists(st.integers(0, 6), min_size=1, max_size=4)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(shapes, st.integers(20, 60), st.sampled_from([Beginnings, EqualPrompts, EveryPiece]))
def test_no_cut_is_lost_and_no_family_exceeds_a_batch(shapes, max_tokens, tally) -> None:
    request = ScoreRequest(tuple(Group(ids(*p), tuple(ids(*[1] * n) for n in lengths)) for p, lengths in shapes))
    cuts = cuts_of(request, max_tokens)
    arranged = together(cuts, max_tokens, None, tally)
    assert sorted(c.places for c in arranged) == sorted(c.places for c in cuts)
    for part in batches(arranged):
        assert len(part) == 1 or sum(c.tokens for c in part) <= max_tokens


@pytest.mark.anyio
async def test_a_family_is_taken_as_a_whole_and_every_score_finds_its_place() -> None:
    request = turns(samples=4, turns=3, prompt=12, completion=5, tool=2, vocab=99)
    engine = FakeEngine()
    engine.counts = Beginnings
    async with scheduler(engine, max_batch_tokens=6144) as s:
        result = await asyncio.wait_for(s.submit(request), 10)
    assert len(engine.batches) == 1
    np.testing.assert_array_equal(result.logprobs, expected(request, engine.info.fingerprint))
    assert s.admission.tokens == 0
