"""However a request is cut, its answers join to the answer to the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from grpo_client import FingerprintMismatch, ScoreRequest, ScoreResult, TextGroup, TextScoreRequest
from grpo_client.splitting import merge, split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Scored = Callable[..., ScoreResult]
IDS = st.lists(st.integers(0, 99), max_size=8)
GROUPS = st.lists(st.tuples(IDS.filter(len), st.lists(IDS, min_size=1, max_size=5)), min_size=1, max_size=4)


def request_of(groups: list[tuple[list[int], list[list[int]]]], **options) -> ScoreRequest:
    temperatures = [1.0 + k / 2 for k in range(len(groups))]
    return ScoreRequest.of([p for p, _ in groups], [c for _, c in groups], temperature=temperatures, **options)


@given(groups=GROUPS, budget=st.integers(1, 60), top_k=st.integers(0, 2))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_split_then_merge_is_the_whole(scored: Scored, groups, budget: int, top_k: int) -> None:
    request = request_of(groups, extras=["entropy", "rank"], top_k=top_k)
    parts = split(request, budget)
    whole, merged = scored(request), merge(request, [scored(part) for part in parts])
    for name in ("logprobs", "status", "temperature", "group_sizes", "completion_lengths"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name
    assert {k: v.tolist() for k, v in merged.extras.items()} == {k: v.tolist() for k, v in whole.extras.items()}
    for part in parts:
        costs = [len(g.prompt) + sum(map(len, g.completions)) for g in part.groups]
        assert sum(costs) <= budget or (len(part.groups) == 1 and len(part.groups[0].completions) == 1)


def test_a_small_request_is_sent_as_it_is() -> None:
    request = request_of([([1, 2], [[3], [4, 5]])])
    assert split(request, 5) == [request]


def test_groups_stay_whole_where_they_can() -> None:
    request = request_of([([1], [[1, 1], [1]]), ([1], [[1, 1], [1]]), ([1], [[1]])])
    assert [[len(g.completions) for g in part.groups] for part in split(request, 7)] == [[2], [2, 1]]


def test_token_ids_go_with_their_completions(scored: Scored) -> None:
    request = ScoreRequest.of([[1]], [[[2, 3], [4]]], token_ids=[[[[5], [6]], [[7]]]])
    parts = split(request, 3)
    assert [p.groups[0].token_ids[0].tolist() for p in parts] == [[[5], [6]], [[7]]]


def test_text_is_cut_by_its_length() -> None:
    request = TextScoreRequest((TextGroup("a" * 30, ("b" * 30,) * 4, 0.5),), fingerprint="ab")
    parts = split(request, 40)
    assert [len(p.groups[0].completions) for p in parts] == [2, 2]
    assert all(p.fingerprint == "ab" and p.groups[0].temperature == 0.5 for p in parts)


def test_usage_is_summed(scored: Scored) -> None:
    request = request_of([([1, 2], [[3, 4], [5]])])
    merged = merge(request, [scored(part) for part in split(request, 4)])
    assert merged.usage.completion_tokens == 3
    assert merged.usage.prompt_tokens == 4, "a prompt that was sent twice cost twice"


def test_scored_ids_of_a_cut_group_come_back_once(scored: Scored) -> None:
    request = request_of([([1, 2], [[3], [4]]), ([7], [[8]])])
    results = [
        replace(
            scored(part),
            prompt_ids=tuple(g.prompt for g in part.groups),
            completion_ids=tuple(c for g in part.groups for c in g.completions),
        )
        for part in split(request, 3)
    ]
    merged = merge(request, results)
    assert [ids.tolist() for ids in merged.prompt_ids or ()] == [[1, 2], [7]]
    assert [ids.tolist() for ids in merged.completion_ids or ()] == [[3], [4], [8]]


def test_parts_of_two_references_do_not_join(scored: Scored) -> None:
    request = request_of([([1], [[2]]), ([1], [[2]])])
    first, second = split(request, 2)
    with pytest.raises(FingerprintMismatch, match="same"):
        merge(request, [scored(first, "aa"), scored(second, "bb")])
