"""Feeds the engine: while one batch computes, requests gather and the next batch is prepared. There is no timer.

Two threads of the engine are driven from the event loop: `prepare` (packing) and `compute` (the model, one thread
only). A batch is prepared ahead only when it is full: a partial one waits for the compute thread to come free, since
until then more requests may join it at no cost.

A batch is of one engine, or of several that share batches: then the first of them computes it, and is told whose each piece
is. Which engines that are may change from batch to batch.

When a batch fails, its requests are tried one by one, so that only the one at fault is told of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Literal

from grpo_server.engine.contract import BatchScores, OutOfMemory
from grpo_server.errors import ErrorCode, ReferenceReplaced, ServiceError
from grpo_server.scheduler.admission import Admission
from grpo_server.scheduler.cache import ResultCache
from grpo_server.scheduler.delivery import batch_done, engines_of, jobs_of, place_scores, tokens_of
from grpo_server.scheduler.door import Door
from grpo_server.scheduler.events import Listener
from grpo_server.scheduler.job import Job
from grpo_server.scheduler.journal import Step, note
from grpo_server.scheduler.queue import Entry, FairQueue
from grpo_server.scheduler.tenancy import Tenancy

logger = logging.getLogger(__name__)


class EngineLoop:
    """Owns the loop between queue and engine, and hands out what comes of it. Call `wake` whenever the queue has changed.

    Each batch is on the door's list of what is under way from the moment it is taken until its last thread is done with it.
    """

    def __init__(
        self,
        queue: FairQueue,
        admission: Admission,
        cache: ResultCache,
        door: Door,
        tenancy: Tenancy,
        *,
        listener: Listener,
        prepare_thread: Executor,
        compute_thread: Executor,
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._admission = admission
        self._cache = cache
        self._door = door
        self._tenancy = tenancy
        self._listener = listener
        self._prepare_thread = prepare_thread
        self._compute_thread = compute_thread
        self._clock = clock
        self._changed = asyncio.Event()
        self._computing: asyncio.Task[None] | None = None
        self._idle = True

    def wake(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._until_worth_taking()
                entries = self._take()
                prepared = await self._prepare(entries)
                if self._computing is not None:
                    await self._computing
                self._idle = False
                self._computing = asyncio.create_task(self._compute(entries, prepared), name="compute batch")
        finally:
            if self._computing is not None:
                self._computing.cancel()

    def fail(self, job: Job, error: ServiceError) -> None:
        """This request gets the error instead of scores, and what still waits of it is dropped."""
        if not job.over:
            job.done.set_exception(error)
        self.drop(job)

    def drop(self, job: Job) -> None:
        """What still waits of this request is not computed."""
        self._admission.computed(self._queue.discard(job))

    async def _until_worth_taking(self) -> None:
        while not (self._queue and (self._idle or self._queue.fills_a_batch)):
            self._changed.clear()
            await self._changed.wait()

    def _take(self) -> list[Entry]:
        entries = self._queue.take()
        self._door.let_in()
        for engine in engines_of(entries):
            self._tenancy.enter(engine)
        now = self._clock()
        for entry in entries:
            if entry.job.started is None:
                entry.job.started = now
                note([entry.job.journal], Step("queue", entry.job.arrived, now, entry.job.tokens, 1))
                self._listener.request_started(now - entry.job.arrived)
        return entries

    async def _prepare(self, entries: Sequence[Entry]) -> Any:
        started = self._clock()
        engine, pieces = entries[0].job.engine, [e.cut.piece for e in entries]
        whose = [[e.job.engine for e in entries]] if len(engines_of(entries)) > 1 else []
        prepared = await _outcome(self._prepare_thread, engine.prepare, pieces, *whose)
        self._note("prepare", entries, started)
        return prepared

    def _note(self, name: Literal["prepare", "compute"], entries: Sequence[Entry], started: float) -> None:
        jobs = jobs_of(entries)
        note([job.journal for job in jobs], Step(name, started, self._clock(), tokens_of(entries), len(jobs)))

    async def _compute(self, entries: Sequence[Entry], prepared: Any) -> None:
        try:
            await self._score(entries, prepared)
        except Exception:  # an answer that does not fit the question: the engine's bug must not end the loop
            logger.exception("a batch could not be handed out")
            for job in jobs_of(entries):
                self.fail(job, _engine_failed("its answer was not usable"))
        finally:
            self._idle = True
            self._admission.computing(0)
            self._admission.computed(tokens_of(entries))
            self._door.let_out()
            for engine in engines_of(entries):
                self._tenancy.leave(engine)
            self.wake()

    async def _score(self, entries: Sequence[Entry], prepared: Any) -> None:
        """Compute what was prepared and hand out the scores, or find out who is at fault."""
        if all(job.over for job in jobs_of(entries)):
            return  # every client has left
        if isinstance(prepared, BaseException):
            return await self._blame(entries, prepared)
        self._admission.computing(tokens_of(entries))
        started = self._clock()
        scores = await _outcome(self._compute_thread, entries[0].job.engine.compute, prepared)
        self._note("compute", entries, started)
        if isinstance(scores, BaseException):
            return await self._blame(entries, scores)
        await self._hand_out(entries, scores, self._clock() - started)

    async def _hand_out(self, entries: Sequence[Entry], scores: BatchScores, seconds: float) -> None:
        for number, entry in enumerate(entries):
            if entry.job.reference != scores.reference_of(
                number
            ):  # an answer is of one reference, the one that is named in it
                self.fail(entry.job, ReferenceReplaced())
        await place_scores(entries, scores, self._cache)
        self._admission.throughput.add(tokens_of(entries), seconds)
        for job in jobs_of(entries):
            job.compute_seconds += seconds
            if not job.outstanding and not job.over:
                job.done.set_result(job.answer(self._clock()))
        self._listener.batch_done(batch_done(entries, scores, seconds))

    async def _blame(self, entries: Sequence[Entry], error: BaseException) -> None:
        jobs = jobs_of(entries)
        if len(jobs) == 1:
            self.fail(jobs[0], _as_service_error(error))
            return
        logger.warning("a batch of %d requests failed (%r); trying them one by one", len(jobs), error)
        for job in jobs:
            own = [e for e in entries if e.job is job]
            await self._score(own, await self._prepare(own))


async def _outcome(thread: Executor, work: Callable[..., Any], *args: Any) -> Any:
    """What work(*args) returned in that thread, or the exception that it raised, as a value."""
    future = asyncio.get_running_loop().run_in_executor(thread, work, *args)
    await asyncio.wait([future])
    error = future.exception()
    return future.result() if error is None else error


def _as_service_error(error: BaseException) -> ServiceError:
    if isinstance(error, OutOfMemory):
        logger.warning("out of memory: %s", error)
        return ServiceError(
            ErrorCode.OUT_OF_MEMORY,
            f"the request does not fit into memory even in the smallest batch ({error}); send shorter sequences or a "
            "smaller top_k, or start the server with a smaller --max-batch-tokens",
        )
    logger.error("the engine failed", exc_info=error)
    return _engine_failed(type(error).__name__)


def _engine_failed(why: str) -> ServiceError:
    return ServiceError(
        ErrorCode.ENGINE_FAILED,
        f"the engine failed on this request ({why}); others are not affected. Report it with the request id and the "
        "lines of the server's log around it",
    )
