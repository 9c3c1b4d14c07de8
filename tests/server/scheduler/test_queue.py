"""The fair queue: budgets kept, small requests through at once, large ones never starved."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from grpo_server.scheduler.assembly import Assembly
from grpo_server.scheduler.cutting import cut
from grpo_server.scheduler.job import Job
from grpo_server.scheduler.queue import FairQueue
from server_fakes import FakeEngine, ask

BATCH = 64


@pytest.fixture
def loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


ENGINE = FakeEngine()


def job(
    loop: asyncio.AbstractEventLoop,
    *completions: int,
    prompt: int = 4,
    groups: int = 1,
    nbytes: int = 0,
    engine: FakeEngine = ENGINE,
) -> Job:
    request = ask(prompt, *completions, groups=groups)
    cuts = cut(request, set(range(len(completions) * groups)), BATCH)
    for c in cuts:
        object.__setattr__(c, "bytes", nbytes)
    return Job(
        request=request,
        engine=engine,
        reference=engine.info,
        assembly=Assembly(request),
        waiting=deque(cuts),
        keys=(),
        host_bytes=0,
        arrived=0.0,
        cached_sequences=0,
        done=loop.create_future(),
        outstanding=len(cuts),
    )


def test_a_batch_takes_as_much_as_fits(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH)
    jobs = [job(loop, 16) for _ in range(5)]  # 20 tokens each
    for j in jobs:
        queue.add(j)
    assert queue.tokens == 100
    batch = queue.take()
    assert [e.job for e in batch] == jobs[:3]
    assert queue.tokens == 40
    assert [e.job for e in queue.take()] == jobs[3:]
    assert not queue
    assert queue.take() == []


def test_what_does_not_fit_beside_others_comes_first_in_the_next_batch(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH)
    first, large, small = job(loop, 16), job(loop, 56), job(loop, 4)
    for j in (first, large, small):
        queue.add(j)
    assert {e.job for e in queue.take()} == {first, small}
    assert [e.job for e in queue.take()] == [large]


def test_a_small_request_is_in_the_very_next_batch_behind_a_huge_one(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH)
    huge = job(loop, 60, groups=100)  # a hundred full batches
    queue.add(huge)
    queue.take()
    small = job(loop, 4)
    queue.add(small)
    assert small in [e.job for e in queue.take()]


def test_small_requests_without_end_do_not_starve_a_huge_one(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH)
    huge = job(loop, 60, groups=10)
    queue.add(huge)
    batches = 0
    while huge.waiting:
        for _ in range(3):
            queue.add(job(loop, 4))
        queue.take()
        batches += 1
    # A full batch of it is due after the eight quanta that make one, in each of which three others may pass.
    assert batches <= 10 * 9


def test_two_huge_requests_share_evenly(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH)
    one, other = job(loop, 28, groups=40), job(loop, 28, groups=40)  # 32 tokens a cut, two a batch
    queue.add(one)
    queue.add(other)
    for _ in range(20):
        queue.take()
        assert abs(len(one.waiting) - len(other.waiting)) <= 2


def test_what_is_larger_than_a_batch_gets_one_to_itself_and_is_not_starved(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH)
    huge = job(loop, 200)
    queue.add(huge)
    taken = []
    for _ in range(20):  # small ones keep coming
        queue.add(job(loop, 4))
        taken.append([e.job for e in queue.take()])
    assert [huge] in taken  # each round saves up a quarter of a batch for it


def test_a_client_that_left_is_taken_out(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH)
    left, stays = job(loop, 60, groups=3), job(loop, 4)
    queue.add(left)
    queue.add(stays)
    assert queue.discard(left) == 3 * 64
    assert queue.discard(left) == 0
    assert [e.job for e in queue.take()] == [stays]
    assert queue.tokens == 0


def test_a_batch_keeps_to_its_bytes_too(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH, max_batch_bytes=100)
    jobs = [job(loop, 4, nbytes=40) for _ in range(3)]
    for j in jobs:
        queue.add(j)
    assert [e.job for e in queue.take()] == jobs[:2]


def test_a_queue_fills_a_batch_when_its_tokens_do(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH)
    queue.add(job(loop, 59))
    assert not queue.fills_a_batch
    queue.add(job(loop, 4))
    assert queue.fills_a_batch


def test_requests_of_many_small_groups_share_every_batch(loop: asyncio.AbstractEventLoop) -> None:
    """A group of 8 tokens is a quantum of 64: who has spent it gives the turn to the next, and does not take it again."""
    queue = FairQueue(BATCH)
    jobs = [job(loop, 4, groups=64), job(loop, 4, groups=64), job(loop, 4)]
    for j in jobs:
        queue.add(j)
    batches = [[e.job for e in queue.take()] for _ in range(4)]
    assert jobs[2] in batches[0]
    for batch in batches[1:]:
        assert [batch.count(j) for j in jobs[:2]] == [4, 4]


def test_a_batch_is_of_one_engine_and_the_others_come_next(loop: asyncio.AbstractEventLoop) -> None:
    other = FakeEngine("other")
    queue = FairQueue(BATCH)
    jobs = [job(loop, 2), job(loop, 2, engine=other), job(loop, 2), job(loop, 2, engine=other)]
    for one in jobs:
        queue.add(one)
    assert [e.job for e in queue.take()] == [jobs[0], jobs[2]]
    assert [e.job for e in queue.take()] == [jobs[1], jobs[3]]
    assert not queue


def test_engines_that_share_batches_fill_one_together(loop: asyncio.AbstractEventLoop) -> None:
    class Sharing(FakeEngine):
        def shares_batches_with(self, other: object) -> bool:
            return isinstance(other, Sharing)

    first, second, alone = Sharing("first"), Sharing("second"), FakeEngine("alone")
    queue = FairQueue(BATCH)
    jobs = [job(loop, 2, engine=engine) for engine in (first, alone, second, first)]
    for one in jobs:
        queue.add(one)
    assert [e.job for e in queue.take()] == [jobs[0], jobs[2], jobs[3]]
    assert [e.job for e in queue.take()] == [jobs[1]]


def test_a_busy_engine_does_not_starve_another(loop: asyncio.AbstractEventLoop) -> None:
    """Fifty requests wait for one, and one for the other: it is in the second batch, although it came last."""
    other = FakeEngine("other")
    queue = FairQueue(BATCH)
    for _ in range(50):
        queue.add(job(loop, 60))  # a batch each
    queue.take()
    queue.add(late := job(loop, 60, engine=other))
    assert [e.job for e in queue.take()] == [late]
    queue.add(late := job(loop, 60, engine=other))
    owners = [queue.take()[0].job.engine for _ in range(4)]
    assert owners == [ENGINE, other, ENGINE, ENGINE]


def test_what_is_larger_than_a_batch_has_become_gets_one_to_itself(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(BATCH, 100)
    queue.add(large := job(loop, 2, nbytes=90))
    queue.add(small := job(loop, 2, nbytes=10))
    queue.resize(BATCH, 50)
    batches = [[e.job for e in queue.take()], [e.job for e in queue.take()]]
    assert batches == [[large], [small]]
