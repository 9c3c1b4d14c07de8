"""A scheduler around a fake engine, and two looks into it, for the tests of the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from grpo_server.engine.contract import Piece
from grpo_server.scheduler import Scheduler, SchedulerLimits
from server_fakes import FakeClock, FakeEngine

T = TypeVar("T")


def scheduler(
    engine: FakeEngine, clock: FakeClock | None = None, plan_threads: Executor | None = None, **limits: int
) -> Scheduler:
    return Scheduler(
        engine,
        SchedulerLimits(**{"max_batch_tokens": 64, "max_queue_tokens": 10_000, **limits}),
        plan_threads=plan_threads,
        clock=clock or FakeClock(),
    )


def prompts_of(batch: Sequence[Piece]) -> list[int]:
    return [len(p.prompt) for p in batch]


async def in_queue(s: Scheduler, requests: int) -> None:
    """Let tasks that were started reach the queue: they do so without waiting for anything."""
    await asyncio.sleep(0)
    assert s.admission.requests == requests


async def exclusively(s: Scheduler, work: Callable[[], T]) -> T:
    """As a swap in place does it."""
    async with s.door.closed_for_swap():
        return work()
