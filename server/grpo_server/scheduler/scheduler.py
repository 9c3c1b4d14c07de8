"""From an accepted request to its answer: cache, cutting, admission, fair queue, batches, assembly.

All state lives on one event loop and changes only between awaits, so there are no locks. What is computed runs in
two threads, see `batcher`. The scheduler knows when to compute what; it knows neither HTTP nor tensors.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

from grpo_client.protocol import ScoreRequest, ScoreResult

from grpo_server.engine.contract import BatchScores, Engine, PieceScores
from grpo_server.errors import ErrorCode, ReferenceReplaced, ServiceError
from grpo_server.scheduler.admission import Admission
from grpo_server.scheduler.assembly import Assembly, host_bytes, split
from grpo_server.scheduler.batcher import Batcher
from grpo_server.scheduler.cache import ResultCache, request_key, result_keys
from grpo_server.scheduler.cutting import Cut, cut
from grpo_server.scheduler.door import Door, draining
from grpo_server.scheduler.events import BatchDone, Listener, Silence
from grpo_server.scheduler.job import Job
from grpo_server.scheduler.queue import Entry, FairQueue

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

    engine: see `grpo_server.engine.contract.Engine`. compute_thread: an executor of one thread, the only one in which the
    model runs; prepare_thread: of one thread too. clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        limits: SchedulerLimits,
        *,
        compute_thread: Executor | None = None,
        prepare_thread: Executor | None = None,
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
        self.admission = Admission(limits.max_queue_tokens, limits.max_queue_bytes, clock)
        self.cache = ResultCache(limits.cache_bytes)
        self._queue = FairQueue(limits.max_batch_tokens, limits.max_batch_bytes)
        self._batcher = Batcher(
            engine,
            self._queue,
            self,
            prepare_thread=prepare,
            compute_thread=self._compute_thread,
            clock=clock,
        )
        self._jobs: set[Job] = set()
        self._in_batches = 0  # entries taken from the queue and not yet through
        self.door = Door()
        self._loop_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop_task = asyncio.create_task(self._batcher.run(), name="batcher")
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

    async def submit(self, request: ScoreRequest) -> ScoreResult:
        """Score a request that was checked before. Returns when all of it is scored.

        Raises ServiceError: at once when it is refused (503 swapping or draining, 413 never fits, 429 not now), later
        when the engine failed on it. If the caller is cancelled, what was not yet computed is dropped.
        """
        job = self._accept(request)
        try:
            return await job.done
        finally:
            self._retire(job)

    def _accept(self, request: ScoreRequest) -> Job:
        """Price and enter a request. Nothing awaits in here: from the check to the queue nothing can change."""
        self.door.refuse_if_closed()
        reference = self._engine.info
        keys = result_keys(request, reference.fingerprint) if self.cache.enabled else []
        found = {i: result for i, key in enumerate(keys) if (result := self.cache.get(key)) is not None}
        lengths = request.completion_lengths
        wanted = {i for i, length in enumerate(lengths) if length and i not in found}
        cuts = deque(self._priced(c) for c in cut(request, wanted, self._limits.max_batch_tokens))
        nbytes = host_bytes(request)
        self.admission.admit(sum(c.tokens for c in cuts), nbytes, lambda: request_key(request))
        if self.cache.enabled:
            self._listener.cache_looked_up(len(found), len(wanted))
        now = self._clock()
        job = Job(
            request=request,
            reference=reference,
            assembly=Assembly(request),
            waiting=cuts,
            keys=keys,
            host_bytes=nbytes,
            arrived=now,
            cached_sequences=len(found),
            done=asyncio.get_running_loop().create_future(),
            outstanding=len(cuts),
        )
        for index, result in found.items():
            job.assembly.place(index, result)
        self._jobs.add(job)
        self.door.busy()
        if cuts:
            self._queue.add(job)
            self._batcher.wake()
        else:
            job.done.set_result(job.answer(now))
        return job

    def _priced(self, c: Cut) -> Cut:
        limit = self._limits.max_batch_bytes
        nbytes = self._engine.bytes_of(c.piece)
        if limit is not None and nbytes > limit:
            raise ServiceError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"scoring {c.tokens} tokens of one group would take {nbytes} bytes of memory and {limit} may be used "
                "(--max-batch-bytes); send shorter sequences, or start the server with a smaller --max-batch-tokens",
                param="groups",
            )
        return replace(c, bytes=nbytes)

    def _retire(self, job: Job) -> None:
        """Nobody waits for this job any more, for whatever reason."""
        self.admission.computed(self._queue.discard(job))
        self.admission.leave(job.host_bytes)
        self._jobs.discard(job)
        self._notice_quiet()

    # --- what the batcher reports (`batcher.Desk`) ----------------------------------------------------------------

    def taken(self, entries: Sequence[Entry]) -> None:
        self._in_batches += len(entries)
        now = self._clock()
        for entry in entries:
            if entry.job.started is None:
                entry.job.started = now
                self._listener.request_started(now - entry.job.arrived)

    def computing(self, entries: Sequence[Entry]) -> None:
        self.admission.computing(sum(e.cut.tokens for e in entries))

    def deliver(self, entries: Sequence[Entry], scores: BatchScores, seconds: float) -> None:
        tokens = sum(e.cut.tokens for e in entries)
        jobs = dict.fromkeys(e.job for e in entries)
        for entry, piece_scores in zip(entries, scores.pieces, strict=True):
            if entry.job.reference == scores.reference:
                self._place(entry, piece_scores)
            else:  # an answer is of one reference, the one that is named in it
                self.fail(entry.job, ReferenceReplaced())
            # The engine counts a batch as a whole: each cut bears its share of it.
            entry.job.computed_tokens += scores.computed_tokens * entry.cut.tokens / tokens
        self.admission.throughput.add(tokens, seconds)
        for job in jobs:
            job.compute_seconds += seconds
            if not job.outstanding and not job.over:
                job.done.set_result(job.answer(self._clock()))
        self._listener.batch_done(
            BatchDone(
                requests=len(jobs),
                tokens=tokens,
                computed_tokens=scores.computed_tokens,
                scored_tokens=sum(len(c) for e in entries for c in e.cut.piece.completions),
                seconds=seconds,
                splits=scores.splits,
            )
        )

    def _place(self, entry: Entry, scores: PieceScores) -> None:
        job, cut_ = entry.job, entry.cut
        lengths = [len(completion) for completion in cut_.piece.completions]
        for place, result in zip(cut_.places, split(scores, lengths), strict=True):
            job.assembly.place(place, result)
            if job.keys:
                self.cache.put(job.keys[place], result)
        job.outstanding -= 1

    def fail(self, job: Job, error: ServiceError) -> None:
        if not job.over:
            job.done.set_exception(error)
        self.admission.computed(self._queue.discard(job))

    def finished(self, entries: Sequence[Entry]) -> None:
        self.admission.computing(0)
        self.admission.computed(sum(e.cut.tokens for e in entries))
        self._in_batches -= len(entries)
        self._notice_quiet()

    # --- closing the door -----------------------------------------------------------------------------------------

    async def run_exclusive(self, work: Callable[[], T]) -> T:
        """Run work on the compute thread while nothing is accepted, queued, prepared or computed.

        Everything accepted before is answered first, by the reference that accepted it; what arrives meanwhile is
        refused with 503. What work raises comes out here.
        """
        async with self.door.closed_for_swap():
            return await asyncio.get_running_loop().run_in_executor(self._compute_thread, work)

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
            self.fail(job, draining("the server stopped before this request was computed"))

    def _notice_quiet(self) -> None:
        if not self._jobs and not self._in_batches:
            self.door.quiet()
