"""The scheduler around a fake engine: failures, what is known already, a full queue, exclusive work, the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from grpo_client.protocol import Group, ScoreRequest, Status
from grpo_server.engine.contract import BatchScores, OutOfMemory, Piece
from grpo_server.errors import ErrorCode, ServiceError
from scheduler_setup import exclusively, in_queue, scheduler
from server_fakes import FakeEngine, ask, expected, ids, tokens

pytestmark = pytest.mark.anyio


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
            return scores if len(self.batches) > 1 else BatchScores([], 0, self.info)

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
        await exclusively(s, lambda: engine.swap("other"))
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
        swap = asyncio.create_task(exclusively(s, lambda: engine.swap("other")))
        await asyncio.sleep(0)
        assert s.door.swapping
        with pytest.raises(ServiceError) as caught:
            await s.submit(ask(1, 1))
        assert caught.value.code is ErrorCode.SWAPPING
        assert caught.value.retry_after is not None
        engine.let_go()
        old, info = await asyncio.gather(before, swap)
        new = await s.submit(ask(4, 60, groups=3))
    assert (old.reference.version, info.version, new.reference.version) == (1, 2, 2)
    assert not np.array_equal(old.logprobs, new.logprobs)


async def test_exclusive_work_that_fails_opens_the_door_again(engine: FakeEngine) -> None:
    async with scheduler(engine) as s:
        with pytest.raises(OSError, match="missing"):
            await exclusively(s, lambda: engine.swap("missing"))
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
