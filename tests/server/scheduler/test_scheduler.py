"""The scheduler around a fake engine: order and identity of answers, batching, fairness, leaving, accounting."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from grpo_client.protocol import Group, ReferenceInfo, ScoreRequest, Status
from grpo_server.engine.contract import Piece
from grpo_server.scheduler import Scheduler, SchedulerLimits
from grpo_server.scheduler.events import BatchDone
from scheduler_setup import in_queue, prompts_of, scheduler
from server_fakes import CURSED, FakeClock, FakeEngine, ask, expected, fake_scores, ids, tokens

pytestmark = pytest.mark.anyio


async def test_answers_are_those_of_the_reference_in_the_callers_order(engine: FakeEngine) -> None:
    request = ScoreRequest(
        tuple(
            Group(tokens(k + 1), tuple(tokens(n, start=k) for n in (3, 0, 40, 7)), temperature=0.5 + k)
            for k in range(6)
        ),
        extras=frozenset({"rank", "entropy"}),
        top_k=2,
    )
    async with scheduler(engine) as s:
        result = await s.submit(request)
    assert len(engine.batches) > 1  # it was cut
    np.testing.assert_array_equal(result.logprobs, expected(request, engine.info.fingerprint))
    assert result.group_sizes.tolist() == [4] * 6
    assert result.temperature.tolist() == [0.5 + k for k in range(6)]
    assert result.completion_lengths.tolist() == [3, 0, 40, 7] * 6
    assert set(result.extras) == {"rank", "entropy", "top_ids", "top_logprobs"}
    # The extras of a completion are those that the engine gave for it, wherever its piece was cut.
    direct = fake_scores(
        engine.info.fingerprint,
        Piece(tokens(6), (tokens(40, start=5),), 5.5, "softmax", frozenset({"rank", "entropy"}), 2),
    )
    last_but_one = list(result.completions())[-2]
    for name, values in direct.extras.items():
        np.testing.assert_array_equal(last_but_one.extras[name], values)
    assert result.usage.prompt_tokens == sum(range(1, 7))
    assert result.usage.completion_tokens == 50 * 6


async def test_an_empty_completion_scores_to_nothing_without_the_engine(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        result = await s.submit(ask(3, 0, 0))
    assert engine.batches == []
    assert (len(result), len(result.logprobs)) == (2, 0)
    assert result.status.tolist() == [Status.OK, Status.OK]


async def test_a_score_that_is_not_finite_is_an_answer_with_a_status(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        result = await s.submit(ScoreRequest((Group(ids(1), (ids(2, CURSED), ids(3))),)))
    assert result.status.tolist() == [Status.NONFINITE, Status.OK]
    assert np.isnan(result.logprobs[1])


async def test_requests_gather_while_the_device_works(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        engine.hold()
        first = asyncio.create_task(s.submit(ask(1, 1)))
        await engine.entered()
        later = [asyncio.create_task(s.submit(ask(n, 1))) for n in (2, 3, 4)]
        await in_queue(s, 4)
        engine.let_go()
        await asyncio.gather(first, *later)
    assert [prompts_of(b) for b in engine.batches] == [[1], [2, 3, 4]]


async def test_a_full_batch_is_prepared_while_another_computes_and_a_partial_one_waits(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        engine.hold()
        first = asyncio.create_task(s.submit(ask(1, 1)))
        await engine.entered()
        await engine.prepared_one()
        partial = asyncio.create_task(s.submit(ask(2, 1)))
        await in_queue(s, 2)
        assert len(engine.prepared) == 1
        rest = asyncio.create_task(s.submit(ask(10, 51)))
        await engine.prepared_one()
        assert len(engine.batches) == 1  # still at the first one
        engine.let_go()
        await asyncio.gather(first, partial, rest)
    assert [prompts_of(b) for b in engine.batches] == [[1], [2, 10]]


async def test_a_small_request_is_not_stuck_behind_a_huge_one(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        engine.hold()
        huge = asyncio.create_task(s.submit(ask(4, 60, groups=50)))
        await engine.entered()
        await engine.prepared_one()
        await engine.prepared_one()  # the second full batch is fixed by now
        small = asyncio.create_task(s.submit(ask(1, 1)))
        await in_queue(s, 2)
        engine.let_go()
        result = await small
        assert not huge.done()
        np.testing.assert_array_equal(result.logprobs, expected(ask(1, 1), engine.info.fingerprint))
        await huge
    assert 1 in prompts_of(engine.batches[2])  # the first batch that was not yet fixed when it came


async def test_a_client_that_left_is_not_computed_for(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        engine.hold()
        first = asyncio.create_task(s.submit(ask(1, 1)))
        await engine.entered()
        leaving = asyncio.create_task(s.submit(ask(2, 1)))
        staying = asyncio.create_task(s.submit(ask(3, 1)))
        await in_queue(s, 3)
        leaving.cancel()
        await in_queue(s, 2)
        engine.let_go()
        await asyncio.gather(first, staying)
        assert [prompts_of(b) for b in engine.batches] == [[1], [3]]
        assert await s.drain(None)
    assert (s.admission.tokens, s.admission.bytes, s.admission.requests) == (0, 0, 0)


async def test_a_prepared_batch_that_everyone_left_is_dropped(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        engine.hold()
        first = asyncio.create_task(s.submit(ask(1, 1)))
        await engine.entered()
        await engine.prepared_one()
        leaving = asyncio.create_task(s.submit(ask(4, 60)))
        await engine.prepared_one()
        leaving.cancel()
        await in_queue(s, 1)
        engine.let_go()
        await first
        await s.submit(ask(3, 1))
    assert [prompts_of(b) for b in engine.batches] == [[1], [3]]
    assert s.admission.tokens == 0


async def test_times_and_tokens_are_accounted_to_the_request(engine: FakeEngine) -> None:
    clock = FakeClock()
    async with scheduler(engine, clock) as s:
        engine.hold()
        first = asyncio.create_task(s.submit(ask(1, 1)))
        await engine.entered()
        second = asyncio.create_task(s.submit(ask(2, 3)))
        await in_queue(s, 2)
        clock.now += 2.0
        engine.let_go()
        one, two = await asyncio.gather(first, second)
    assert (one.usage.queue_ms, one.usage.compute_ms) == (0.0, 2000.0)
    assert (two.usage.queue_ms, two.usage.compute_ms) == (2000.0, 0.0)
    assert two.usage.computed_tokens == 5
    assert s.admission.throughput.tokens_per_second == pytest.approx(2 / 2.0)


async def test_a_listener_hears_of_batches_waits_and_cache(engine: FakeEngine) -> None:
    class Notes:
        def __init__(self) -> None:
            self.batches: list[BatchDone] = []
            self.waits: list[float] = []
            self.cache: list[tuple[int, int]] = []
            self.accepted: list[str] = []

        def request_accepted(self, reference: ReferenceInfo) -> None:
            self.accepted.append(reference.model)

        def request_started(self, queue_seconds: float) -> None:
            self.waits.append(queue_seconds)

        def batch_done(self, batch: BatchDone) -> None:
            self.batches.append(batch)

        def cache_looked_up(self, reference: ReferenceInfo, hits: int, misses: int) -> None:
            self.cache.append((hits, misses))

    notes = Notes()
    limits = SchedulerLimits(max_batch_tokens=64, cache_bytes=2**20)
    async with Scheduler(engine, limits, clock=FakeClock(), listener=notes) as s:
        await s.submit(ask(5, 3, 4))
        await s.submit(ask(5, 3, 6))
    assert [(b.requests, b.tokens, b.computed_tokens, b.scored_tokens) for b in notes.batches] == [
        (1, 12, 12, 7),
        (1, 11, 11, 6),
    ]
    assert notes.accepted == ["fake", "fake"]
    assert notes.waits == [0.0, 0.0]
    assert notes.cache == [(0, 2), (1, 1)]
