"""Nobody waits in silence: after the first failure it is said who failed, why, and for how long it will be tried."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from grpo_client import AsyncReferenceClient, ConnectionFailed, DeadlineExceeded, ReferenceClient, Retry, RetryPolicy
from grpo_client.http.retry_log import RetryLog


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("Connection refused")


def lines_of(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "grpo_client" and r.levelno == level]


@pytest.mark.parametrize("awaited", [False, True])
def test_the_first_failure_is_said_at_once(reference, time, caplog: pytest.LogCaptureFixture, awaited: bool) -> None:
    reference.before = refuse
    retry = RetryPolicy(max_wait=100.0, clock=time.clock)
    if awaited:

        async def ask() -> None:
            transport = httpx.MockTransport(reference.async_handler())
            async with AsyncReferenceClient(
                "http://ref:81", transport=transport, retry=retry, sleep=time.async_sleep
            ) as client:
                await client.info()

        with pytest.raises(DeadlineExceeded):
            asyncio.run(ask())
    else:
        transport = httpx.MockTransport(reference)
        with (
            ReferenceClient("http://ref:81", transport=transport, retry=retry, sleep=time.sleep) as client,
            pytest.raises(DeadlineExceeded),
        ):
            client.info()
    first, *later = lines_of(caplog)
    assert first == "http://ref:81: ConnectError: Connection refused; trying again for up to 100 s"
    assert 2 <= len(later) <= 4, "every half minute, not at every try"
    assert "still trying after" in later[0]
    assert "more" in later[0]


def test_many_waiting_requests_say_it_once_and_then_that_it_is_over(reference, time, caplog, refusal) -> None:
    caplog.set_level(logging.INFO, "grpo_client")
    reference.before = lambda request: refusal(503, "loading the model") if len(reference.seen) < 12 else None
    with ReferenceClient(
        "http://ref", transport=httpx.MockTransport(reference), sleep=time.sleep, max_request_tokens=1,
        retry=RetryPolicy(max_wait=1000.0, clock=time.clock, max_delay=1.0),
    ) as client:  # fmt: skip
        client.score([[1]] * 8, [[[1]]] * 8)
    [warning] = lines_of(caplog)
    assert warning.startswith("HTTP 503: loading the model (http://ref/v1/logprobs)")
    assert len(over := lines_of(caplog, logging.INFO)) == 1
    assert over[0].startswith("http://ref answers again after")


def test_a_second_outage_is_said_again(time) -> None:
    said: list[str] = []
    log = RetryLog(warn=said.append, inform=said.append, clock=time.clock)
    failure = Retry(ConnectionFailed("down", url="http://a"), 1, 0.0, 1.0, 60.0)
    for _ in range(3):
        log.failed(failure)
    log.answered("http://b")
    log.answered("http://a")
    log.answered("http://a")
    log.failed(failure)
    assert said == [str(failure), "http://a answers again after 0 s", str(failure)]


def test_with_another_server_ready_it_says_so(reference, time, caplog: pytest.LogCaptureFixture) -> None:
    reference.before = lambda request: refuse(request) if request.url.host == "dead" else None
    with ReferenceClient(
        ["http://dead", "http://alive"], transport=httpx.MockTransport(reference), sleep=time.sleep,
        retry=RetryPolicy(max_wait=9.0, clock=time.clock),
    ) as client:  # fmt: skip
        client.info()
        client.info()
    assert lines_of(caplog) == ["http://dead: ConnectError: Connection refused; another server is asked"]


def test_a_caller_may_take_it_in_the_logs_place(reference, time, caplog: pytest.LogCaptureFixture) -> None:
    reference.before = refuse
    seen: list[Retry] = []
    retry = RetryPolicy(max_wait=10.0, clock=time.clock, on_retry=seen.append)
    with (
        ReferenceClient(
            "http://ref", transport=httpx.MockTransport(reference), retry=retry, sleep=time.sleep
        ) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.info()
    assert lines_of(caplog) == []
    assert [retry.tries for retry in seen] == list(range(1, len(seen) + 1))
    assert [retry.delay for retry in seen] == time.slept
    assert all(isinstance(retry.error, ConnectionFailed) for retry in seen)
    assert seen[0].left == 10.0


def test_nothing_is_said_where_nothing_is_waited_for(reference, caplog: pytest.LogCaptureFixture) -> None:
    reference.before = refuse
    with ReferenceClient("http://ref", transport=httpx.MockTransport(reference), max_wait=0) as client:
        assert not client.health()
        with pytest.raises(ConnectionFailed):
            client.info()
    assert lines_of(caplog) == []
