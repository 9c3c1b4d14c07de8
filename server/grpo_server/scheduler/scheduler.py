"""From an accepted request to its answer: cache, cutting, admission, fair queue, batches, assembly.

All state lives on one event loop and changes only between awaits, so there are no locks. What is computed runs in
two threads, see `engine_loop`. The scheduler knows when to compute what; it knows neither HTTP nor tensors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from grpo_client.protocol import ScoreRequest, ScoreResult

from grpo_server.engine.contract import Engine
from grpo_server.errors import ReferenceReplaced
from grpo_server.scheduler.accounts import Account
from grpo_server.scheduler.admission import Admission
from grpo_server.scheduler.cache import ResultCache, content_keys, request_key, result_keys
from grpo_server.scheduler.door import Door, draining
from grpo_server.scheduler.engine_loop import EngineLoop
from grpo_server.scheduler.events import Listener, Silence
from grpo_server.scheduler.intake import Plan, plan
from grpo_server.scheduler.job import Job
from grpo_server.scheduler.journal import Journal
from grpo_server.scheduler.queue import FairQueue
from grpo_server.scheduler.tenancy import Tenancy
from grpo_server.scheduler.weight import is_large

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Tokens and bytes of a batch and of the queue; None: not limited. cache_bytes 0: no cache."""

    max_batch_tokens: int = 6144
    max_batch_bytes: int | None = None
    max_queue_tokens: int = 524_288
    max_queue_bytes: int = 2**30
    cache_bytes: int = 0


class Scheduler:
    """Use as an async context manager: its loop runs inside.

    engine: see `grpo_server.engine.contract.Engine`; computes what no other is named for. door: may be closed by whoever
    made it. compute_thread: an executor of one thread, the only one in which the model runs; prepare_thread: of one thread
    too; plan_threads: where large requests are looked over. clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        limits: SchedulerLimits,
        *,
        door: Door | None = None,
        compute_thread: Executor | None = None,
        prepare_thread: Executor | None = None,
        plan_threads: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
        listener: Listener | None = None,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._clock = clock
        self._listener = listener or Silence()
        self._compute_thread = compute_thread or ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._own_threads = [self._compute_thread] if compute_thread is None else []
        prepare = prepare_thread or ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._own_threads += [prepare] if prepare_thread is None else []
        self._plan_threads = plan_threads or ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._own_threads += [self._plan_threads] if plan_threads is None else []
        self.admission = Admission(limits.max_queue_tokens, limits.max_queue_bytes, clock)
        self.cache = ResultCache(limits.cache_bytes)
        self.door = door or Door()
        self.tenancy = Tenancy()
        self._queue = FairQueue(limits.max_batch_tokens, limits.max_batch_bytes)
        self._engine_loop = EngineLoop(
            self._queue,
            self.admission,
            self.cache,
            self.door,
            self.tenancy,
            listener=self._listener,
            prepare_thread=prepare,
            compute_thread=self._compute_thread,
            clock=clock,
        )
        self._jobs: set[Job] = set()
        self._loop_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop_task = asyncio.create_task(self._engine_loop.run(), name="feed the engine")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.door.draining = True
        assert self._loop_task is not None
        self._loop_task.cancel()
        await asyncio.wait([self._loop_task])
        self._give_up()
        for thread in self._own_threads:
            thread.shutdown(wait=True, cancel_futures=True)

    # --- the way of a request -------------------------------------------------------------------------------------

    async def submit(
        self,
        request: ScoreRequest,
        account: Account | None = None,
        engine: Engine | None = None,
        journal: Journal | None = None,
    ) -> ScoreResult:
        """Score a request that was checked before, by this engine. Returns when all of it is scored.

        account: of the key that it came with. journal: where its steps are written. Raises ServiceError: at once when it is
        refused (503 swapping or draining, 413 never fits, 429 not now), later when the engine failed on it. If the caller is
        cancelled, what was not yet computed is dropped.
        """
        engine = self._engine if engine is None else engine
        with self.tenancy.needing(engine):
            job = await self._accepted(request, account, engine, journal)
            try:
                return await job.done
            finally:
                self._retire(job)

    async def _accepted(
        self, request: ScoreRequest, account: Account | None, engine: Engine, journal: Journal | None
    ) -> Job:
        """Price a request and enter it. What takes its time with a large one runs beside the event loop; a small one is entered
        without waiting for anything."""
        self.door.refuse_if_closed()
        reference = engine.info
        large = is_large(request)
        contents = await self._aside(large, content_keys, request) if large or self.cache.enabled else None
        keys = result_keys(contents, reference.fingerprint) if contents is not None and self.cache.enabled else []
        found = {i: scores for i, key in enumerate(keys) if (scores := self.cache.get(key)) is not None}
        limits = self._limits
        planned = await self._aside(
            large, plan, request, found, limits.max_batch_tokens, limits.max_batch_bytes, engine
        )
        if engine.info != reference:
            raise ReferenceReplaced  # while it was planned
        return self._enter(
            Job(
                request=request,
                engine=engine,
                reference=reference,
                assembly=planned.assembly,
                waiting=planned.cuts,
                keys=keys,
                host_bytes=planned.host_bytes,
                arrived=self._clock(),
                cached_sequences=len(found),
                done=asyncio.get_running_loop().create_future(),
                account=account,
                journal=journal,
                tokens=planned.tokens,
                outstanding=len(planned.cuts),
            ),
            planned,
            lambda: request_key(content_keys(request) if contents is None else contents),
        )

    def _enter(self, job: Job, planned: Plan, key: Callable[[], bytes]) -> Job:
        """Nothing awaits in here: from the check to the queue nothing can change."""
        self.door.refuse_if_closed()
        if job.account is not None:
            job.account.check(job.tokens, self.admission.throughput.tokens_per_second)
        self.admission.admit(job.tokens, job.host_bytes, key)
        if job.account is not None:
            job.account.enter(job.tokens)
        self._listener.request_accepted(job.reference)
        if self.cache.enabled:
            self._listener.cache_looked_up(job.reference, job.cached_sequences, planned.wanted)
        self._jobs.add(job)
        self.door.let_in()
        if job.waiting:
            self._queue.add(job)
            self._engine_loop.wake()
        else:
            job.done.set_result(job.answer(job.arrived))
        return job

    async def _aside(self, large: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if not large:
            return work(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._plan_threads, lambda: work(*args, **kwargs))

    def _retire(self, job: Job) -> None:
        """Nobody waits for this job any more, for whatever reason."""
        if job.account is not None:
            job.account.leave(job.tokens, job.tokens if job.failed else job.waiting_tokens)
        self._engine_loop.drop(job)
        self.admission.leave(job.host_bytes)
        self._jobs.discard(job)
        self.door.let_out()

    def host(self, engine: Engine) -> None:
        """From the next request on, this engine computes what no other is named for."""
        self._engine = engine

    def resize(self, limits: SchedulerLimits) -> None:
        """From now on batches are of this size; what is accepted already is computed, if need be in a batch of its own."""
        self._limits = limits
        self._queue.resize(limits.max_batch_tokens, limits.max_batch_bytes)

    # --- closing the door -----------------------------------------------------------------------------------------

    async def drain(self, timeout: float | None) -> bool:
        """Take nothing new and wait until everything accepted is answered.

        False when that takes longer than timeout: what is left then fails with 503, so that its clients ask elsewhere.
        """
        in_time = await self.door.closed_for_good(timeout)
        if not in_time:
            self._give_up()
        return in_time

    def _give_up(self) -> None:
        for job in list(self._jobs):
            self._engine_loop.fail(job, draining("the server stopped before this request was computed"))
