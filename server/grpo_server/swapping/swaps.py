"""One swap at a time, from being asked for to the flip between two batches.

    wait > fetch > (empty) > load > probe > verify > (save) > (hold) > record, flip

hold: where several servers change together, each waits here, with the new reference up beside the old one, for the word that
all are there. Meanwhile who asks for the new fingerprint is answered by it already, so that clients that are pinned to it may
meet servers before and behind the flip.

Up to `record` it can be cancelled and ends at its deadline, and nothing has changed. A thread that reads weights cannot be
interrupted: then the swap is over for whoever asked, and the next one is refused until the thread has come to its next stage.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from grpo_client.models.demo import DEMO, ModelSource
from grpo_client.protocol import ReferenceInfo

from grpo_server.config import ServerConfig
from grpo_server.durable import is_full, sync_below
from grpo_server.engine.contract import Change, HostedEngine
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.scheduler import Scheduler
from grpo_server.scheduler.door import draining
from grpo_server.swapping.fetching import Fetched, from_hub, look_through
from grpo_server.swapping.house import House
from grpo_server.swapping.metrics import SwapMetrics
from grpo_server.swapping.progress import Kind, Outcome, Progress, SwapStatus
from grpo_server.swapping.sources import Allowed, no_room, unavailable
from grpo_server.swapping.state import StateDir
from grpo_server.swapping.uploaded import held, is_upload, settle
from grpo_server.uploading.area import UploadArea

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_AFTER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: to host a model, or to mix it into the hosted one with `decay` of that left. version: that it gets;
    None: the next. hold: wait for the word before it serves."""

    model: str
    revision: str | None = None
    decay: float | None = None
    version: int | None = None
    hold: bool = False

    @property
    def kind(self) -> Kind:
        return "swap" if self.decay is None else "ema"


class Swaps:
    """Belongs to the event loop. aside: a thread for what runs beside the engine's. announce: told who is hosted after a
    flip."""

    def __init__(
        self,
        config: ServerConfig,
        house: House,
        scheduler: Scheduler,
        *,
        state: StateDir | None,
        metrics: SwapMetrics,
        aside: Executor,
        compute: Executor,
        announce: Callable[[ReferenceInfo], None],
        uploads: UploadArea | None = None,
    ) -> None:
        self._config, self._house, self._scheduler = config, house, scheduler
        self._state, self._metrics = state, metrics
        self._aside, self._compute, self._announce = aside, compute, announce
        self._allowed = Allowed(config.swap_root, config.swap_root is None or config.swap_hub, uploads)
        self._uploads = uploads
        self._progress: Progress | None = None
        self._task: asyncio.Task[ReferenceInfo] | None = None
        self._thread: asyncio.Future[Any] | None = None
        self._why: ServiceError | None = None
        self._begun = False
        self._word = asyncio.Event()
        self._up = asyncio.Event()
        self._count = 0
        metrics.watch(under_way=lambda: self.under_way, engines=lambda: len(house.engines))

    @property
    def status(self) -> SwapStatus | None:
        """The swap that is under way, or else the last one."""
        return None if self._progress is None else self._progress.status()

    @property
    def under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def in_thread(self) -> bool:
        """Whether a thread works for a swap, wanted or not."""
        return self._thread is not None and not self._thread.done()

    def begin(self, wish: Wish) -> asyncio.Task[ReferenceInfo]:
        """Begin it: a task that gives the new reference. Leave it be if nobody waits for it: it goes on.

        Raises ServiceError: 409 while another is under way, 403 and 422 for a source that cannot be used, 422 for a version
        that is not a later one. The task raises it, too.
        """
        self._scheduler.door.refuse_if_closed()
        hosted = self._house.engine.info.version
        if wish.version is not None and wish.version <= hosted:
            raise ServiceError(
                ErrorCode.INVALID_VALUE,
                f"version {wish.version} is not later than the hosted one, {hosted}; versions only grow",
                param="version",
            )
        if self.under_way or self.in_thread:
            assert self._progress is not None
            busy = self._progress
            raise ServiceError(
                ErrorCode.SWAP_UNDER_WAY,
                f"{busy.model} is being brought in ({busy.stage}, {busy.seconds:.0f} s so far), or its end is waited for; "
                f"come back, "
                "or end it with DELETE /admin/reference",
                retry_after=RETRY_AFTER_SECONDS,
            )
        reads = self._house.engine.reads_files or is_upload(wish.model)
        source = self._allowed.check(wish.model) if reads else None
        self._count += 1
        self._why, self._begun = None, False
        self._word, self._up = asyncio.Event(), asyncio.Event()
        self._progress = progress = Progress(self._count, wish.kind, wish.model)

        self._task = asyncio.create_task(self._run(wish, source, progress), name=f"swap {self._count}")
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._task

    def cancel(self, why: ServiceError) -> bool:
        """End the swap that is under way, for whoever waits with this error. False where there is none, or it is too late."""
        if not self.under_way or self._progress is None or self._progress.ending or self._progress.stage == "record":
            return False
        assert self._task is not None
        self._why = why
        self._progress.ending = True
        if (
            self._begun
        ):  # else its first step sees to it: a task that is cancelled ahead of that says nothing to anybody
            self._task.cancel()
        return True

    async def up(self, task: asyncio.Task[ReferenceInfo]) -> ReferenceInfo:
        """Who is held, once the swap that was begun as this task has come so far. Raises what the task does."""
        waiting = asyncio.ensure_future(self._up.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        held = self._house.held
        return await task if task.done() or held is None else held.info

    async def commit(self, version: int) -> ReferenceInfo:
        """The word: who is held as this version serves from now on. Said again, it changes nothing.

        Raises ServiceError (409 not_held) where no such version is held or hosted.
        """
        held, task = self._house.held, self._task
        if held is not None and held.info.version == version and self.under_way and task is not None:
            self._word.set()
            return await asyncio.shield(task)
        hosted = self._house.engine.info
        if hosted.version == version:
            return hosted
        raise ServiceError(
            ErrorCode.NOT_HELD,
            f"version {version} is not held here, where version {hosted.version} serves; bring it here again with "
            'POST /admin/reference and "hold": true',
            param="version",
        )

    async def over(self) -> None:
        """Until no swap is under way."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def drain(self) -> None:
        """Wait for a swap that has come to its weights; one that still fetches, or waits for the word, is ended."""
        if self._progress is not None and self._progress.stage in ("wait", "fetch", "hold"):
            self.cancel(draining("the server is shutting down and takes no other reference"))
        await self.over()

    async def stop(self) -> None:
        """The server ends: so does a swap that nothing can be made of any more."""
        self.cancel(draining("the server stopped before the swap was done"))
        await self.over()

    # --- one swap -------------------------------------------------------------------------------------------------

    async def _run(self, wish: Wish, source: ModelSource | None, progress: Progress) -> ReferenceInfo:
        """What is told of a swap, however it ends."""
        staging: Path | None = None
        outcome: Outcome = "failed"
        error = unavailable("the server failed; its log says where")
        try:
            self._begun = True
            if progress.ending:
                raise asyncio.CancelledError
            staging = self._staging(wish, source)
            with held(self._uploads, wish.model):
                info = await self._change(wish, source, staging, progress)
            settle(self._uploads, wish.model, mixed=wish.decay is not None)
        except TimeoutError:
            outcome = "timeout"
            error = ServiceError(
                ErrorCode.SWAP_TIMEOUT,
                f"{wish.model} was not there after {self._config.swap_timeout:g} s (--swap-timeout): the swap ended at "
                f"'{progress.stage}', and the old reference serves on",
            )
        except asyncio.CancelledError:
            outcome, error = "cancelled", self._why or draining("the server stopped before the swap was done")
        except ServiceError as refusal:
            error = refusal
        except (OSError, ValueError) as failure:
            logger.info("the model was refused", exc_info=failure)
            error = no_room(str(failure)) if is_full(failure) else unavailable(str(failure))
        else:
            outcome = "done"
            return info
        finally:
            self._house.let_go_of_held()
            progress.finish(outcome, None if outcome == "done" else error.message)
            self._metrics.ended(progress)
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)  # what is kept has another name by now
        logger.warning("swap %d ended (%s): %s", progress.number, outcome, error.message)
        raise error

    async def _change(
        self, wish: Wish, source: ModelSource | None, staging: Path | None, progress: Progress
    ) -> ReferenceInfo:
        async with AsyncExitStack() as until_flipped:
            async with asyncio.timeout(self._config.swap_timeout):
                await self._house.alone()
                progress.enter("fetch")
                fetched = await self._fetched(wish, source, staging if wish.decay is None else None, progress)
                thread = self._aside
                if await self._stops_serving(wish, fetched, progress):
                    thread = self._compute
                    progress.enter("empty")
                    await until_flipped.enter_async_context(self._scheduler.door.closed_for_swap())
                change = Change(fetched.source, fetched.revision, wish.model, wish.decay, wish.version)
                old = self._house.engine
                engine = await self._in(thread, progress, lambda: old.beside(change, progress.enter))
                if staging is not None and wish.decay is not None:
                    progress.enter("save")
                    await self._in(self._aside, progress, lambda: _save(engine, staging))
                if wish.hold:
                    progress.enter("hold")
                    self._house.hold(engine)
                    self._up.set()
                    await self._word.wait()
                progress.enter("record")
            await self._in(self._aside, progress, lambda: self._record(wish, fetched, staging, engine.info))
            self._house.flip(engine)
            progress.version = engine.info.version
            self._announce(engine.info)
        return engine.info

    async def _fetched(self, wish: Wish, source: ModelSource | None, into: Path | None, progress: Progress) -> Fetched:
        if not self._house.engine.reads_files:
            return Fetched(wish.model, wish.revision)
        if source is None:
            code = self._config.trust_remote_code
            return await from_hub(wish.model, wish.revision, code=code, progress=progress)
        if wish.model == DEMO:
            return Fetched(DEMO)
        return await look_through(source, self._allowed.root_of(wish.model, source), into, progress)

    async def _stops_serving(self, wish: Wish, fetched: Fetched, progress: Progress) -> bool:
        """Whether the new weights have to wait until nothing is computed: as configured, or as there is memory."""
        memory = self._config.swap_memory
        if memory == "auto":
            old = self._house.engine
            why = await self._in(self._aside, progress, lambda: old.no_room_beside(fetched.source))
            memory = "beside" if why is None else "in-place"
            progress.why_in_place = why
            if why is not None:
                logger.warning("nothing is served while %s is loaded: %s (--swap-memory)", wish.model, why)
        progress.memory = memory
        return memory == "in-place"

    async def _in(self, thread: Executor, progress: Progress, work: Callable[[], T]) -> T:
        """What work returns in that thread. When the swap ends meanwhile, work is told at its next stage, and what it still
        gives is let go of."""
        future = asyncio.get_running_loop().run_in_executor(thread, work)
        self._thread = future
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            progress.ending = True
            future.add_done_callback(_let_go)
            raise
        return future.result()

    # --- what a restart finds -------------------------------------------------------------------------------------

    def _staging(self, wish: Wish, source: ModelSource | None) -> Path | None:
        """Where files arrive that are to be kept: what comes from the hub stays in its cache, and the demo model in its
        wheel."""
        lasts = wish.decay is None and (source is None or wish.model == DEMO)
        if self._state is None or lasts or not self._house.engine.reads_files:
            return None
        return self._state.new_directory()

    def _record(self, wish: Wish, fetched: Fetched, staging: Path | None, info: ReferenceInfo) -> None:
        """After this a restart serves the new reference."""
        if self._state is None or self._state.recorded is None:
            return
        last = self._state.recorded
        mixed = wish.decay is not None
        self._state.record(
            last.model_copy(
                update={
                    "version": info.version,
                    "fingerprint": info.fingerprint,
                    "model": last.model if mixed else wish.model,
                    "revision": None if mixed else fetched.revision,
                    "kept": None
                    if staging is None
                    else self._state.keep(staging, info.version, _inside(fetched, staging)),
                }
            )
        )
        self._state.prune()


def _inside(fetched: Fetched, staging: Path) -> str:
    """A lone .gguf file is loaded by its own name."""
    source = Path(fetched.source)
    return source.name if source.parent == staging else ""


def _save(engine: HostedEngine, directory: Path) -> None:
    engine.save(directory)
    sync_below(directory)


def _let_go(thread: asyncio.Future[T]) -> None:
    """What came of work that nobody waits for: an engine, or an error."""
    if not thread.cancelled() and thread.exception() is None and hasattr(engine := thread.result(), "close"):
        engine.close()  # pyright: ignore
