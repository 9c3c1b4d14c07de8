"""When is tried again, after how long, and when it is given up: with a clock that passes only in sleep."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from grpo_client import ConnectionFailed, DeadlineExceeded, FingerprintMismatch, RetryPolicy, ServerFailed, Unavailable
from grpo_client.http.retry_after import parse_retry_after


def never() -> bool:
    return False


def busy(retry_after: float | None = None) -> Unavailable:
    return Unavailable("queue full", status=429, retry_after=retry_after)


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return attempt


def policy_of(time, **options) -> RetryPolicy:
    return RetryPolicy(clock=time.clock, **options)


def test_waits_grow_and_are_bounded(time) -> None:
    policy = policy_of(time, first_delay=1.0, max_delay=8.0)
    errors = [ConnectionFailed("down")] * 6
    assert policy.retrying(time.sleep, never, never)(failing(*errors)) == "done"
    assert len(time.slept) == 6
    for waited, base in zip(time.slept, [1, 2, 4, 8, 8, 8], strict=True):
        assert base <= waited <= base + 1  # the jitter is at most first_delay


def test_waits_differ_from_caller_to_caller(time) -> None:
    for _ in range(20):
        policy_of(time).retrying(time.sleep, never, never)(failing(busy()))
    assert len(set(time.slept)) > 1, "clients that failed together must not come back together"


def test_retry_after_is_a_floor(time) -> None:
    policy_of(time).retrying(time.sleep, never, never)(failing(busy(retry_after=33.0), busy(retry_after=0.0)))
    assert time.slept[0] >= 33.0
    assert time.slept[1] < 33.0


def test_no_wait_while_another_server_is_ready(time) -> None:
    policy_of(time).retrying(time.sleep, lambda: True, never)(failing(busy(retry_after=33.0)))
    assert time.slept == [0.0]


@pytest.mark.parametrize("error", [FingerprintMismatch("other"), ServerFailed("bug", status=500), ValueError("mine")])
def test_what_cannot_succeed_is_not_tried_again(time, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        policy_of(time).retrying(time.sleep, never, never)(failing(error))
    assert caught.value is error
    assert time.slept == []


def test_deadline(time) -> None:
    policy = policy_of(time, max_wait=10.0, first_delay=1.0)
    with pytest.raises(DeadlineExceeded, match="max_wait=10") as caught:
        policy.retrying(time.sleep, never, never)(failing(*[ConnectionFailed("down")] * 99))
    assert time.now < 10.0, "no try may begin after the deadline"
    assert isinstance(caught.value.__cause__, ConnectionFailed)
    assert isinstance(caught.value, TimeoutError)


def test_a_retry_after_beyond_the_deadline_gives_up_at_once(time) -> None:
    with pytest.raises(DeadlineExceeded):
        policy_of(time, max_wait=10.0).retrying(time.sleep, never, never)(failing(busy(retry_after=60.0)))
    assert time.slept == []


def test_no_max_wait_means_one_try_and_its_own_error(time) -> None:
    with pytest.raises(Unavailable):
        policy_of(time, max_wait=0).retrying(time.sleep, never, never)(failing(busy()))


def test_a_closed_client_does_not_try_again(time) -> None:
    with pytest.raises(ConnectionFailed):
        policy_of(time).retrying(time.sleep, never, lambda: True)(failing(ConnectionFailed("down")))


@pytest.mark.parametrize("field", ["max_wait", "first_delay", "max_delay"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_seconds_must_be_seconds(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**{field: value})


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:30 -0000", 30.0),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_header(header: str | None, seconds: float | None) -> None:
    now = datetime(2015, 10, 21, 7, 28, 0, tzinfo=UTC)
    assert parse_retry_after(header, now) == seconds
