"""Least busy first, failed ones aside and back again."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from grpo_client import ConnectionFailed, RequestRefused, Unavailable
from grpo_client.http.balancer import Balancer


def fail(balancer: Balancer, error: Exception) -> str:
    with pytest.raises(type(error)), balancer.lease() as url:
        raise error
    return url


def use(balancer: Balancer) -> str:
    with balancer.lease() as url:
        return url


def test_least_busy_first(time) -> None:
    balancer = Balancer("ab", clock=time.clock)
    with ExitStack() as held:
        first = [held.enter_context(balancer.lease()) for _ in range(4)]
        assert sorted(first) == ["a", "a", "b", "b"]
        with ExitStack() as more:
            third = [more.enter_context(balancer.lease()) for _ in range(2)]
        assert sorted(third) == ["a", "b"]


def test_idle_servers_take_turns(time) -> None:
    balancer = Balancer("abc", clock=time.clock)
    assert [use(balancer) for _ in range(6)] == list("abcabc")


def test_a_failed_server_is_set_aside_for_longer_each_time(time) -> None:
    balancer = Balancer("ab", first_aside=1.0, max_aside=4.0, clock=time.clock)
    assert use(balancer) == "a"
    use(balancer)
    for aside in (1.0, 2.0, 4.0, 4.0):
        assert fail(balancer, ConnectionFailed("down")) == "a"
        assert {use(balancer) for _ in range(4)} == {"b"}
        time.now += aside - 0.01
        assert use(balancer) == "b"
        time.now += 0.01
    assert use(balancer) == "a"  # it answers again, and is forgiven
    use(balancer)
    fail(balancer, ConnectionFailed("down"))
    time.now += 1.0
    assert balancer.ready()
    assert {use(balancer), use(balancer)} == {"a", "b"}


def test_retry_after_sets_aside_for_as_long(time) -> None:
    balancer = Balancer("ab", clock=time.clock)
    assert fail(balancer, Unavailable("full", status=429, retry_after=30.0)) == "a"
    time.now += 29.0
    assert {use(balancer) for _ in range(3)} == {"b"}
    time.now += 1.0
    assert "a" in {use(balancer), use(balancer)}


def test_a_refusal_is_an_answer(time) -> None:
    balancer = Balancer("a", clock=time.clock)
    fail(balancer, RequestRefused("too long", status=413))
    assert balancer.ready()


def test_when_all_are_aside_the_first_to_come_back_is_used(time) -> None:
    balancer = Balancer("ab", clock=time.clock)
    fail(balancer, Unavailable("loading", status=503, retry_after=50.0))
    fail(balancer, Unavailable("loading", status=503, retry_after=5.0))
    assert not balancer.ready()
    assert use(balancer) == "b"


def test_a_bug_does_not_leak_a_slot(time) -> None:
    balancer = Balancer("ab", clock=time.clock)
    for _ in range(3):
        fail(balancer, KeyError("bug"))
    assert {use(balancer), use(balancer)} == {"a", "b"}
