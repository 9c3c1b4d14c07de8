"""A large request is named, cut and priced beside the event loop, and nothing that happens meanwhile makes its answer wrong."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from grpo_client.protocol import Group, ScoreRequest
from grpo_server.errors import ReferenceReplaced, ServiceError
from grpo_server.scheduler import cache, intake
from grpo_server.scheduler.delivery import PLACED_AT_ONCE
from grpo_server.scheduler.weight import LARGE, PER_COMPLETION, is_large
from scheduler_setup import exclusively, scheduler
from server_fakes import PATIENCE, FakeEngine, ask, expected, ids, tokens

pytestmark = pytest.mark.anyio

MANY = LARGE // PER_COMPLETION
LIMITS = {"max_queue_tokens": 10**6, "cache_bytes": 10**8}


def many(last: int = 1) -> ScoreRequest:
    return ScoreRequest((Group(ids(1), (*(ids(2, i % 90) for i in range(MANY)), ids(last))),))


class Gate(ThreadPoolExecutor):
    """One thread, which begins its nth piece of work only after `go` was released so often."""

    def __init__(self) -> None:
        super().__init__(1)
        self.go = threading.Semaphore(0)
        self.submitted = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1

        def later() -> Any:
            assert self.go.acquire(timeout=PATIENCE)
            return fn(*args, **kwargs)

        return super().submit(later)


@pytest.fixture
def gate() -> Any:
    with Gate() as gate:
        yield gate
        gate.go.release(10)


async def until_submitted(gate: Gate, work: int) -> None:
    while gate.submitted < work:
        await asyncio.sleep(0)


def test_what_is_large() -> None:
    assert not is_large(ask(3, 1, 1))
    assert is_large(many())
    assert is_large(ScoreRequest((Group(tokens(LARGE), (ids(1),)),)))
    assert is_large(ScoreRequest((Group(ids(1), (tokens(LARGE),)),)))
    assert is_large(ScoreRequest(tuple(Group(ids(1), (ids(1),)) for _ in range(MANY))))
    wanted = np.zeros((1, LARGE), np.int32)
    assert is_large(ScoreRequest((Group(ids(1), (ids(1),), token_ids=(wanted,)),)))


async def test_a_small_request_passes_a_large_one_that_is_looked_over(engine: FakeEngine, gate: Gate) -> None:
    async with scheduler(engine, plan_threads=gate, **LIMITS) as s:
        slow = asyncio.create_task(s.submit(many()))
        await until_submitted(gate, 1)
        await s.submit(ask(3, 1))
        assert not slow.done()
        gate.go.release(2)
        np.testing.assert_array_equal((await slow).logprobs, expected(many(), engine.info.fingerprint))


async def test_nothing_of_a_large_request_is_looked_over_on_the_event_loop(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noted(work: Any) -> Any:
        def noting(*args: Any) -> Any:
            threads.append(threading.current_thread())
            return work(*args)

        return noting

    for module, name in ((cache, "content_keys"), (intake, "cut"), (intake, "host_bytes"), (intake, "Assembly")):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
        monkeypatch.setattr(f"grpo_server.scheduler.scheduler.{name}", getattr(module, name), raising=False)
    async with scheduler(engine, **LIMITS) as s:
        await s.submit(many())
    assert len(threads) == 4
    assert threading.main_thread() not in threads


async def test_what_the_cache_holds_of_a_large_request_is_not_computed_again(engine: FakeEngine) -> None:
    async with scheduler(engine, **LIMITS) as s:
        first = await s.submit(many())
        batches = len(engine.batches)
        again = await s.submit(many())
        assert len(engine.batches) == batches
        other = await s.submit(many(last=7))
    np.testing.assert_array_equal(again.logprobs, first.logprobs)
    assert again.usage.cached_sequences == MANY + 1
    assert other.usage.cached_sequences == MANY
    np.testing.assert_array_equal(other.logprobs, expected(many(last=7), engine.info.fingerprint))


@pytest.mark.parametrize("steps", [0, 1])
async def test_a_reference_that_was_replaced_meanwhile_is_found_out(engine: FakeEngine, gate: Gate, steps: int) -> None:
    async with scheduler(engine, plan_threads=gate, **LIMITS) as s:
        slow = asyncio.create_task(s.submit(many()))
        await until_submitted(gate, 1)
        for _ in range(steps):
            gate.go.release()
        await until_submitted(gate, 1 + steps)
        await exclusively(s, lambda: setattr(engine, "_name", "other"))
        gate.go.release(2)
        with pytest.raises(ReferenceReplaced):
            await slow
        assert (s.admission.requests, s.admission.tokens, s.admission.bytes) == (0, 0, 0)


async def test_a_door_that_was_closed_meanwhile_lets_nothing_in(engine: FakeEngine, gate: Gate) -> None:
    async with scheduler(engine, plan_threads=gate, **LIMITS) as s:
        slow = asyncio.create_task(s.submit(many()))
        await until_submitted(gate, 1)
        assert await s.drain(PATIENCE)
        gate.go.release(2)
        with pytest.raises(ServiceError) as refused:
            await slow
        assert refused.value.code.status == 503
        assert engine.batches == []


async def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(engine: FakeEngine, gate: Gate) -> None:
    async with scheduler(engine, plan_threads=gate, **LIMITS) as s:
        gone = asyncio.create_task(s.submit(many()))
        await until_submitted(gate, 1)
        gone.cancel()
        await asyncio.wait([gone])
        gate.go.release(2)
        await s.submit(ask(3, 1))
        assert (s.admission.requests, s.admission.tokens, s.admission.bytes) == (0, 0, 0)
        assert [len(batch) for batch in engine.batches] == [1]


async def test_scores_of_a_large_batch_are_handed_out_in_turns(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[int] = []
    async with scheduler(engine, **LIMITS, max_batch_tokens=10 * MANY) as s:
        put = s.cache.put

        def noted(*args: Any) -> None:
            handed[-1] += 1
            put(*args)

        monkeypatch.setattr(s.cache, "put", noted)
        waiting = asyncio.create_task(s.submit(many()))
        handed.append(0)
        while not waiting.done():
            await asyncio.sleep(0)
            handed.append(0)
    assert sum(handed) == MANY + 1
    assert max(handed) <= PLACED_AT_ONCE
