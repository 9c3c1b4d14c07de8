"""Whose turn it is where several have work waiting."""

from __future__ import annotations

from collections import Counter

from grpo_server.scheduler.turns import Turns


def shares(turns: Turns[str], waiting: str, rounds: int, cost: dict[str, float]) -> Counter[str]:
    given: Counter[str] = Counter()
    for _ in range(rounds):
        one = turns.next(list(waiting))
        assert one is not None
        turns.given(one, cost[one])
        given[one] += cost[one]
    return given


def test_each_gets_as_much_whatever_its_batches_cost() -> None:
    given = shares(Turns(), "abc", 130, {"a": 1.0, "b": 10.0, "c": 100.0})
    assert max(given.values()) - min(given.values()) <= 100


def test_who_comes_late_is_next_and_has_saved_nothing_up() -> None:
    turns: Turns[str] = Turns()
    shares(turns, "a", 100, {"a": 10.0})
    assert turns.next(["a", "b"]) == "b"
    turns.given("b", 10.0)
    given = shares(turns, "ab", 20, {"a": 10.0, "b": 10.0})
    assert abs(given["a"] - given["b"]) <= 10


def test_who_comes_back_again_and_again_takes_turns_with_who_never_leaves() -> None:
    turns: Turns[str] = Turns()
    order: list[str] = []
    for n in range(20):
        one = turns.next(["a", "b"] if n % 2 == 0 else ["a"])
        assert one is not None
        turns.given(one, 5.0)
        order.append(one)
    assert order[::2].count("b") >= 9


def test_nobody_waits() -> None:
    assert Turns[str]().next([]) is None
