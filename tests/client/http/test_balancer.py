"""A prompt where it belongs, else least busy first; failed ones aside and back again."""

from __future__ import annotations

import math
from contextlib import ExitStack

import pytest
from grpo_client import ConnectionFailed, RequestRefused, Unavailable
from grpo_client.http.balancer import Balancer
from grpo_client.ring import LOAD_FACTOR, prompt_key


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


KEYS = [prompt_key(f"prompt {n}") for n in range(200)]


def homes(balancer: Balancer) -> list[str]:
    found: list[str] = []
    for key in KEYS:
        with balancer.lease(key) as url:
            found.append(url)
    return found


def test_a_prompt_goes_to_the_same_server_each_time_whatever_the_order_of_the_list(time) -> None:
    first = homes(Balancer("abc", clock=time.clock))
    assert set(first) == {"a", "b", "c"}
    assert homes(Balancer("cab", clock=time.clock)) == first
    one = Balancer("bca", clock=time.clock)
    for _ in range(3):
        use(one)  # what has no prompt goes elsewhere and moves nothing
        assert homes(one) == first


def test_a_server_that_is_down_gives_its_prompts_away_and_has_them_back(time) -> None:
    balancer = Balancer("abc", clock=time.clock)
    before = homes(balancer)
    key = KEYS[before.index("b")]
    with pytest.raises(ConnectionFailed), balancer.lease(key):
        raise ConnectionFailed("down")
    during = homes(balancer)
    assert all(now == then if then != "b" else now in ("a", "c") for then, now in zip(before, during, strict=True))
    assert {now for then, now in zip(before, during, strict=True) if then == "b"} == {"a", "c"}
    time.now += 1.0
    assert homes(balancer) == before


def test_one_prompt_spreads_when_it_would_be_too_much_for_one(time) -> None:
    balancer = Balancer("abcd", clock=time.clock)
    with ExitStack() as held:
        taken = [held.enter_context(balancer.lease(KEYS[0])) for _ in range(16)]
    bound = math.ceil(LOAD_FACTOR * 16 / 4)
    assert max(taken.count(name) for name in "abcd") <= bound
    assert taken[0] == homes(balancer)[0]


def test_with_keys_too_the_first_to_come_back_is_used_when_all_are_aside(time) -> None:
    balancer = Balancer("ab", clock=time.clock)
    fail(balancer, Unavailable("loading", status=503, retry_after=50.0))
    fail(balancer, Unavailable("loading", status=503, retry_after=5.0))
    with balancer.lease(KEYS[0]) as url:
        assert url == "b"
