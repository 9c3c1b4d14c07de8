"""The scheduler around a fake engine: order and identity of answers, batching, fairness, leaving, failing, closing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from grpo_client.protocol import Group, ScoreRequest, Status
from grpo_server.engine.work import BatchScores, OutOfMemory, Piece
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.scheduler import Scheduler, SchedulerLimits
from grpo_server.scheduler.events import BatchDone
from server_fakes import CURSED, FakeClock, FakeEngine, ask, expected, fake_scores, ids, tokens

pytestmark = pytest.mark.anyio


def scheduler(engine: FakeEngine, clock: FakeClock | None = None, **limits: int) -> Scheduler:
    return Scheduler(
        engine,
        SchedulerLimits(**{"max_batch_tokens": 64, "max_queue_tokens": 10_000, **limits}),
        clock=clock or FakeClock(),
    )


def prompts_of(batch: Sequence[Piece]) -> list[int]:
    return [len(p.prompt) for p in batch]


async def in_queue(s: Scheduler, requests: int) -> None:
    """Let tasks that were started reach the queue: they do so without waiting for anything."""
    await asyncio.sleep(0)
    assert s.admission.requests == requests


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


@pytest.mark.parametrize("stage", ["fail", "fail_prepare"])
async def test_an_engine_failure_reaches_only_the_request_at_fault(
    engine: FakeEngine, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    setattr(engine, stage, lambda pieces: RuntimeError("boom") if 66 in [p.prompt[0] for p in pieces] else None)
    poisoned = ScoreRequest((Group(ids(66), (ids(1),)),))
    async with scheduler(engine) as s:
        engine.hold()
        first = asyncio.create_task(s.submit(ask(1, 1)))
        await engine.entered()
        good = [asyncio.create_task(s.submit(ask(n, 1))) for n in (2, 3)]
        bad = asyncio.create_task(s.submit(poisoned))
        await in_queue(s, 4)
        engine.let_go()
        with pytest.raises(ServiceError) as caught:
            await bad
        for n, task in zip((2, 3), good, strict=True):
            np.testing.assert_array_equal((await task).logprobs, expected(ask(n, 1), engine.info.fingerprint))
        await first
        assert (await s.submit(ask(5, 1))).status.tolist() == [Status.OK]  # and it goes on
    assert caught.value.code is ErrorCode.ENGINE_FAILED
    assert caught.value.status == 500
    assert "boom" in caplog.text


async def test_out_of_memory_is_a_503_for_the_one_that_cannot_fit(engine: FakeEngine) -> None:
    engine.fail = lambda pieces: OutOfMemory("too much") if any(len(p.prompt) > 30 for p in pieces) else None
    async with scheduler(engine) as s:
        engine.hold()
        first = asyncio.create_task(s.submit(ask(1, 1)))
        await engine.entered()
        fat, thin = (asyncio.create_task(s.submit(ask(n, 1))) for n in (40, 2))
        await in_queue(s, 3)
        engine.let_go()
        with pytest.raises(ServiceError) as caught:
            await fat
        assert (await thin).status.tolist() == [Status.OK]
        await first
    assert caught.value.code is ErrorCode.OUT_OF_MEMORY
    assert caught.value.headers()["X-Should-Retry"] == "false"


async def test_a_failed_request_leaves_nothing_behind(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine.fail = lambda pieces: RuntimeError("boom")
    async with scheduler(engine) as s:
        with caplog.at_level(logging.CRITICAL), pytest.raises(ServiceError):
            await s.submit(ask(4, 60, groups=20))
        assert await s.drain(None)
    assert (s.admission.tokens, s.admission.bytes, s.admission.requests) == (0, 0, 0)
    assert len(engine.batches) <= 2  # the rest of it was not tried: one failed, one was prepared


async def test_an_unusable_answer_of_the_engine_fails_its_requests_and_not_the_loop(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Forgetful(FakeEngine):
        def compute(self, batch: Sequence[Piece]) -> BatchScores:
            scores = super().compute(batch)
            return scores if len(self.batches) > 1 else BatchScores([], 0)

    async with scheduler(Forgetful()) as s:
        with pytest.raises(ServiceError) as caught:
            await s.submit(ask(1, 1))
        assert (await s.submit(ask(2, 1))).status.tolist() == [Status.OK]
    assert caught.value.code is ErrorCode.ENGINE_FAILED
    assert s.admission.tokens == 0


async def test_the_cache_answers_what_was_asked_before(engine: FakeEngine) -> None:
    async with scheduler(engine, cache_bytes=2**20) as s:
        whole = await s.submit(ask(5, 3, 4))
        again = await s.submit(ask(5, 3, 4))
        mixed_request = ScoreRequest((Group(tokens(5), (tokens(4, 22), tokens(9))),))
        mixed = await s.submit(mixed_request)
    assert len(engine.batches) == 2
    assert [len(c) for c in engine.batches[1][0].completions] == [9]  # only the new one
    np.testing.assert_array_equal(again.logprobs, whole.logprobs)
    np.testing.assert_array_equal(mixed.logprobs, expected(mixed_request, engine.info.fingerprint))
    assert [r.usage.cached_sequences for r in (whole, again, mixed)] == [0, 2, 1]
    assert again.usage.computed_tokens == 0


async def test_the_cache_does_not_outlive_its_reference(engine: FakeEngine) -> None:
    async with scheduler(engine, cache_bytes=2**20) as s:
        await s.submit(ask(5, 3))
        await s.run_exclusive(lambda: engine.swap("other"))
        result = await s.submit(ask(5, 3))
    assert result.reference.version == 2
    np.testing.assert_array_equal(result.logprobs, expected(ask(5, 3), engine.info.fingerprint))


async def test_without_a_cache_everything_is_computed(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        await s.submit(ask(5, 3))
        await s.submit(ask(5, 3))
    assert len(engine.batches) == 2


async def test_a_full_queue_refuses_and_what_it_accepted_is_answered(engine: FakeEngine) -> None:
    async with scheduler(engine, max_queue_tokens=100) as s:
        engine.hold()
        accepted = [asyncio.create_task(s.submit(ask(4, 16, start=n))) for n in range(5)]
        await in_queue(s, 5)
        with pytest.raises(ServiceError) as caught:
            await s.submit(ask(1, 1))
        assert caught.value.code is ErrorCode.QUEUE_FULL
        assert caught.value.retry_after is not None
        engine.let_go()
        results = await asyncio.gather(*accepted)
        assert all(r.status.tolist() == [Status.OK] for r in results)
        await s.submit(ask(1, 1))


async def test_a_piece_that_costs_too_much_memory_is_refused_before_it_is_queued(engine: FakeEngine) -> None:
    engine.piece_bytes = 1001
    async with scheduler(engine, max_batch_bytes=1000) as s:
        with pytest.raises(ServiceError) as caught:
            await s.submit(ask(1, 1))
    assert caught.value.code is ErrorCode.REQUEST_TOO_LARGE
    assert "--max-batch-bytes" in caught.value.message
    assert engine.batches == []


async def test_exclusive_work_waits_for_what_was_accepted_and_refuses_the_rest(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        engine.hold()
        before = asyncio.create_task(s.submit(ask(4, 60, groups=3)))
        await engine.entered()
        swap = asyncio.create_task(s.run_exclusive(lambda: engine.swap("other")))
        await asyncio.sleep(0)
        assert s.swapping
        with pytest.raises(ServiceError) as caught:
            await s.submit(ask(1, 1))
        assert caught.value.code is ErrorCode.SWAPPING
        assert caught.value.retry_after is not None
        engine.let_go()
        old, info = await asyncio.gather(before, swap)
        new = await s.submit(ask(4, 60, groups=3))
    assert (old.reference.version, info.version, new.reference.version) == (1, 2, 2)
    assert not np.array_equal(old.logprobs, new.logprobs)
    assert engine.changed_in[0].startswith("compute")


async def test_exclusive_work_that_fails_opens_the_door_again(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        with pytest.raises(OSError, match="missing"):
            await s.run_exclusive(lambda: engine.swap("missing"))
        assert (await s.submit(ask(1, 1))).reference.version == 1


async def test_a_drain_answers_what_was_accepted_and_takes_nothing_new(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        engine.hold()
        accepted = asyncio.create_task(s.submit(ask(4, 60, groups=3)))
        await engine.entered()
        drain = asyncio.create_task(s.drain(None))
        await asyncio.sleep(0)
        with pytest.raises(ServiceError) as caught:
            await s.submit(ask(1, 1))
        assert caught.value.code is ErrorCode.DRAINING
        engine.let_go()
        assert await drain
        assert accepted.done()
        assert (await accepted).status.tolist() == [Status.OK] * 3


async def test_a_drain_that_takes_too_long_says_so_and_the_rest_is_told(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        engine.hold()
        accepted = asyncio.create_task(s.submit(ask(1, 1)))
        await engine.entered()
        assert not await s.drain(0.0)
        engine.let_go()
    with pytest.raises(ServiceError) as caught:
        await accepted
    assert caught.value.code is ErrorCode.DRAINING


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

        def request_started(self, queue_seconds: float) -> None:
            self.waits.append(queue_seconds)

        def batch_done(self, batch: BatchDone) -> None:
            self.batches.append(batch)

        def cache_looked_up(self, hits: int, misses: int) -> None:
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
    assert notes.waits == [0.0, 0.0]
    assert notes.cache == [(0, 2), (1, 1)]
