"""One swap at a time, of whichever reference, from being asked for to its end.

Up to the stage `record` it can be cancelled and ends at its deadline, and nothing has changed. A thread that reads weights
cannot be interrupted: then the swap is over for whoever asked, and the next one is refused until the thread has come to its
next stage.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from concurrent.futures import Executor

from grpo_client.models.demo import ModelSource
from grpo_client.protocol import ReferenceInfo

from grpo_server.config import ServerConfig
from grpo_server.durable import is_full
from grpo_server.engine.contract import HostedEngine
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.naming import Named
from grpo_server.scheduler import Scheduler
from grpo_server.scheduler.door import draining
from grpo_server.swapping.hosting import Hosting
from grpo_server.swapping.house import House
from grpo_server.swapping.keeping import Keeping
from grpo_server.swapping.metrics import SwapMetrics
from grpo_server.swapping.progress import Outcome, Progress, SwapStatus
from grpo_server.swapping.refusals import about, busy, check_droppable, check_free, check_later, not_held
from grpo_server.swapping.sources import Allowed, no_room, unavailable
from grpo_server.swapping.state import StateDir
from grpo_server.swapping.steps import Steps
from grpo_server.swapping.uploaded import held, is_upload, settle
from grpo_server.swapping.wish import Wish, Word
from grpo_server.uploading.area import UploadArea

logger = logging.getLogger(__name__)


class Swaps:
    """Belongs to the event loop. aside: a thread for what runs beside the engines'."""

    def __init__(
        self,
        config: ServerConfig,
        hosting: Hosting,
        scheduler: Scheduler,
        *,
        state: StateDir | None,
        metrics: SwapMetrics,
        aside: Executor,
        compute: Executor,
        uploads: UploadArea | None = None,
    ) -> None:
        self._config, self._hosting, self._scheduler = config, hosting, scheduler
        self._references = hosting.references
        self._state, self._metrics = state, metrics
        self._allowed = Allowed(config.swap_root, config.swap_root is None or config.swap_hub, uploads)
        self._uploads = uploads
        self._steps = Steps(config, scheduler, self._allowed, aside=aside, compute=compute)
        self._progress: Progress | None = None
        self._last: dict[str, Progress] = {}  # by the label of the reference
        self._task: asyncio.Task[ReferenceInfo] | None = None
        self._why: ServiceError | None = None
        self._begun = False
        self._house: House | None = None  # whose reference is being replaced
        self._base: str | None = None  # on which an adapter is being laid
        self._word = Word()
        self._count = 0
        metrics.watch(under_way=lambda: self.under_way, engines=lambda: len(self._references.engines))

    @property
    def status(self) -> SwapStatus | None:
        """The swap that is under way, or else the last one."""
        return None if self._progress is None else self._progress.status()

    def status_of(self, house: House) -> SwapStatus | None:
        """The same of this reference alone."""
        last = self._last.get(house.named.label)
        return None if last is None else last.status()

    @property
    def under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def in_thread(self) -> bool:
        """Whether a thread works for a swap, wanted or not."""
        return self._steps.in_thread

    def begin(self, wish: Wish) -> asyncio.Task[ReferenceInfo]:
        """Begin it: a task that gives the new reference. Leave it be if nobody waits for it: it goes on.

        Raises ServiceError: 409 while another is under way, 404 for a name that is not here, 403 and 422 for a source that
        cannot be used, 422 for a version that is not a later one. The task raises it, too.
        """
        self._scheduler.door.refuse_if_closed()
        house = None
        if wish.new:
            check_free(self._references, wish)
        else:
            house = self._references.named(wish.reference, "reference")
        if self.under_way or self.in_thread:
            assert self._progress is not None
            raise busy(self._progress)
        if house is not None:
            check_later(wish, house.engine.info.version)
        source = self._source(wish)
        self._count += 1
        self._why, self._begun = None, False
        self._house, self._base, self._word = house, wish.base, Word()
        label = wish.reference or "" if house is None else house.named.label
        self._progress = progress = self._last[label] = Progress(self._count, wish.kind, wish.model, label)

        self._task = asyncio.create_task(self._run(house, wish, source, progress), name=f"swap {self._count}")
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._task

    def cancel(self, why: ServiceError, reference: str | None = None) -> bool:
        """End the swap that is under way, for whoever waits with this error. reference: only if it is of this one, by its name.
        False where there is none, or it is too late."""
        if reference is not None and not self._is_of(reference):
            return False
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
        house = self._house
        waiting = asyncio.ensure_future(self._word.up.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        held = None if house is None else house.held
        return await task if task.done() or held is None else held.info

    async def commit(self, version: int, reference: str | None = None) -> ReferenceInfo:
        """The word: who is held as this version serves from now on. Said again, it changes nothing.

        Raises ServiceError (409 not_held) where no such version is held or hosted.
        """
        house, task = self._references.named(reference, "reference"), self._task
        held, hosted = house.held, house.engine.info
        if held is not None and held.info.version == version and self.under_way and task is not None:
            self._word.said.set()
            return await asyncio.shield(task)
        if hosted.version == version:
            return hosted
        raise not_held(self._references, house, version)

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

    async def drop(self, name: str) -> None:
        """Let go of a further reference, once it has answered what it accepted. Raises ServiceError: 404 for a name that is
        not here, 422 for the default one and for a base, 409 while it is replaced or becomes a base."""
        self._scheduler.door.refuse_if_closed()
        house = self._references.named(name, "name")
        check_droppable(self._references, house)
        needed = self._progress is not None and house.named.label in (self._progress.reference, self._base)
        if needed and self.under_way and self._progress is not None:
            raise busy(self._progress)
        self._last.pop(house.named.label, None)
        if self._state is not None:
            self._state.forget(house.named.label)
        await self._hosting.drop(house)

    # --- one swap -------------------------------------------------------------------------------------------------

    @property
    def _first(self) -> HostedEngine:
        return self._references.default.engine

    def _source(self, wish: Wish) -> ModelSource | None:
        if not (self._first.reads_files or is_upload(wish.model)):
            return None
        try:
            return self._allowed.check(wish.model)
        except ServiceError as refusal:
            raise about(wish, refusal) from refusal

    def _is_of(self, reference: str) -> bool:
        """Whether the last swap is of this reference, by the name that clients use."""
        name = None if self._house is None else self._house.name
        return self._progress is not None and reference in (name, self._progress.reference)

    def _state_of(self, label: str, *, default: bool) -> StateDir | None:
        return self._state if self._state is None or default else self._state.of(label)

    async def _run(
        self, house: House | None, wish: Wish, source: ModelSource | None, progress: Progress
    ) -> ReferenceInfo:
        """What is told of a swap, however it ends. house: whose reference is replaced; None: a further one is loaded."""
        keeping: Keeping | None = None
        outcome: Outcome = "failed"
        error = about(wish, unavailable("the server failed; its log says where"))
        try:
            self._begun = True
            if progress.ending:
                raise asyncio.CancelledError
            state = self._state_of(progress.reference, default=house is not None and house.default)
            keeping = Keeping(state, wish, source, reads_files=self._first.reads_files)
            with held(self._uploads, wish.model):
                if house is None:
                    beside = self._first if wish.base is None else self._references.named(wish.base).engine
                    engine = await self._steps.add(beside, wish, source, keeping, progress)
                    house = self._hosting.add(Named(wish.model, wish.reference, wish.base), engine)
                else:
                    await self._steps.replace(house, wish, source, keeping, progress, self._word)
            progress.version = house.engine.info.version
            self._hosting.announce(house)
            settle(self._uploads, wish.model, mixed=wish.decay is not None)
        except TimeoutError:
            outcome = "timeout"
            error = ServiceError(
                ErrorCode.SWAP_TIMEOUT,
                f"{wish.model} was not there after {self._config.swap_timeout:g} s (--swap-timeout): the swap ended at "
                f"'{progress.stage}', and {wish.otherwise}",
            )
        except asyncio.CancelledError:
            outcome, error = "cancelled", self._why or draining("the server stopped before the swap was done")
        except ServiceError as refusal:
            error = about(wish, refusal)
        except (OSError, ValueError) as failure:
            logger.info("the model was refused", exc_info=failure)
            error = about(wish, no_room(str(failure)) if is_full(failure) else unavailable(str(failure)))
        else:
            outcome = "done"
            return house.engine.info
        finally:
            if house is not None:
                house.let_go_of_held()
            progress.finish(outcome, None if outcome == "done" else error.message)
            self._metrics.ended(progress)
            if keeping is not None and keeping.directory is not None:
                shutil.rmtree(keeping.directory, ignore_errors=True)  # what is kept has another name by now
            if wish.new and outcome != "done" and self._state is not None:
                self._state.forget(progress.reference)
        logger.warning("swap %d ended (%s): %s", progress.number, outcome, error.message)
        raise error
