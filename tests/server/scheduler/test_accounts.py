"""A key's own ledger: a minute's tokens, tokens in the queue, and its share of the rounds."""

from __future__ import annotations

import asyncio

import pytest
from grpo_client.protocol import Group, ScoreRequest
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.scheduler.accounts import Account, AccountLimits
from scheduler_setup import in_queue, prompts_of, scheduler
from server_fakes import FakeClock, FakeEngine, ask, ids, tokens

SPEED = 10.0  # tokens per second of the engine


def account(clock: FakeClock | None = None, **limits: object) -> Account:
    return Account("a", AccountLimits(**limits), clock or FakeClock())  # type: ignore[arg-type]


def refusal(a: Account, tokens: int) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        a.check(tokens, SPEED)
    return caught.value


def test_a_minutes_tokens_come_back_all_the_time() -> None:
    clock = FakeClock()
    a = account(clock, tokens_per_minute=60)
    a.enter(60)
    assert refusal(a, 30).retry_after == 30.0
    clock.now += 29.9
    assert refusal(a, 30).code is ErrorCode.KEY_RATE_LIMIT
    clock.now += 0.1
    a.check(30, SPEED)
    clock.now += 1000.0  # no more than a minute's is kept
    a.enter(60)
    assert refusal(a, 1).retry_after == 1.0


def test_a_request_larger_than_a_minute_is_let_in_and_paid_off() -> None:
    clock = FakeClock()
    a = account(clock, tokens_per_minute=60)
    a.check(180, SPEED)
    a.enter(180)
    assert refusal(a, 180).retry_after == 180.0
    clock.now += 180.0
    a.check(180, SPEED)


def test_who_comes_when_told_is_let_in() -> None:
    clock = FakeClock()
    a = account(clock, tokens_per_minute=7)
    for spent in (5, 3, 11, 2, 7, 6, 1):
        a.enter(spent)
        clock.now += refusal(a, 6).retry_after or 0.0
        a.check(6, SPEED)


def test_what_was_not_computed_is_given_back() -> None:
    a = account(tokens_per_minute=60, max_queue_tokens=100)
    a.enter(60)
    a.leave(60, unused=40)
    assert (a.queue_tokens, a.computed_tokens) == (0, 20)
    a.check(40, SPEED)
    assert refusal(a, 41)


def test_the_queue_of_a_key() -> None:
    a = account(max_queue_tokens=100)
    a.enter(80)
    full = refusal(a, 50)
    assert (full.code, full.retry_after) == (ErrorCode.KEY_QUEUE_FULL, 3.0)  # 30 too many, 10 a second
    assert refusal(a, 101).code is ErrorCode.REQUEST_TOO_LARGE
    a.leave(80, unused=0)
    a.check(100, SPEED)


@pytest.mark.anyio
async def test_the_scheduler_keeps_the_ledger_whatever_becomes_of_a_request(engine: FakeEngine) -> None:
    a = account(max_queue_tokens=1000)
    async with scheduler(engine) as s:
        await s.submit(ask(4, 3), a)
        assert (a.queue_tokens, a.computed_tokens) == (0, 7)
        engine.hold()
        running = asyncio.create_task(s.submit(ask(4, 3), a))
        await engine.entered()
        leaving = asyncio.create_task(s.submit(ask(8, 5), a))
        await in_queue(s, 2)
        assert a.queue_tokens == 7 + 13
        leaving.cancel()
        await asyncio.wait([leaving])
        assert a.queue_tokens == 7
        engine.let_go()
        await running
        engine.fail = lambda pieces: RuntimeError("broken")
        with pytest.raises(ServiceError):
            await s.submit(ask(4, 3), a)
    assert (a.queue_tokens, a.computed_tokens) == (0, 14)


@pytest.mark.anyio
async def test_a_key_that_is_refused_takes_nothing_of_the_queue(engine: FakeEngine) -> None:
    a = account(max_queue_tokens=5)
    async with scheduler(engine) as s:
        with pytest.raises(ServiceError):
            await s.submit(ask(4, 3), a)
        assert (s.admission.tokens, s.admission.requests, s.admission.bytes) == (0, 0, 0)


@pytest.mark.anyio
async def test_priorities_share_a_batch_four_to_one_to_a_quarter(engine: FakeEngine) -> None:
    """Three requests of 64 groups each wait while the engine is busy; batches of 64 tokens take 8 groups."""
    accounts = [account(priority=p) for p in ("low", "normal", "high")]
    requests = [
        ScoreRequest(tuple(Group(ids(*[10 * (i + 1)] * (5 - i)), (tokens(3 + i, g),)) for g in range(64)))
        for i in range(3)
    ]
    async with scheduler(engine) as s:
        engine.hold()
        first = asyncio.create_task(s.submit(ask(2, 2)))
        await engine.entered()
        waiting = [asyncio.create_task(s.submit(r, a)) for r, a in zip(requests, accounts, strict=True)]
        await in_queue(s, 4)
        engine.let_go()
        await asyncio.gather(first, *waiting)
    served = [prompts_of(batch) for batch in engine.batches[1:9]]
    low, normal, high = (sum(batch.count(prompt) for batch in served) for prompt in (5, 4, 3))
    assert high == pytest.approx(4 * normal, abs=4)
    assert normal == pytest.approx(4 * low, abs=4)
    assert low > 0
