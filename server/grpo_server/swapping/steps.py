"""The steps of one swap, each of which may be its last.

    wait > fetch > (empty) > load > probe > verify > (save) > (hold) > record, flip

hold: where several servers change together, each waits here, with the new reference up beside the old one, for the word that
all are there. Meanwhile who asks for the new fingerprint is answered by it already, so that clients that are pinned to it may
meet servers before and behind the flip.

A thread that reads weights cannot be interrupted: it is told at its next stage, and what it still gives is let go of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from grpo_client.models.demo import DEMO, ModelSource

from grpo_server.config import ServerConfig
from grpo_server.engine.contract import Addition, Change, HostedEngine, OnStage
from grpo_server.naming import Named
from grpo_server.scheduler import Scheduler
from grpo_server.swapping.fetching import Fetched, from_hub, look_through
from grpo_server.swapping.house import House
from grpo_server.swapping.keeping import Keeping
from grpo_server.swapping.opening import adapted
from grpo_server.swapping.progress import Progress
from grpo_server.swapping.sources import Allowed, unavailable
from grpo_server.swapping.wish import Wish, Word

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Steps:
    """Belongs to the event loop. aside: a thread for what runs beside the engines'."""

    def __init__(
        self, config: ServerConfig, scheduler: Scheduler, allowed: Allowed, *, aside: Executor, compute: Executor
    ) -> None:
        self._config, self._scheduler, self._allowed = config, scheduler, allowed
        self._aside, self._compute = aside, compute
        self._thread: asyncio.Future[Any] | None = None

    @property
    def in_thread(self) -> bool:
        """Whether a thread works for a swap, wanted or not."""
        return self._thread is not None and not self._thread.done()

    async def replace(
        self, house: House, wish: Wish, source: ModelSource | None, keeping: Keeping, progress: Progress, word: Word
    ) -> None:
        """Host what is wished in this house, from some moment between two batches on. Raises TimeoutError, ServiceError,
        OSError, ValueError; then nothing has changed."""
        async with AsyncExitStack() as until_flipped:
            async with asyncio.timeout(self._config.swap_timeout):
                await house.alone()
                old = house.engine
                progress.enter("fetch")
                fetched = await self._fetched(old, wish, source, keeping, progress)
                thread = self._aside
                if await self._stops_serving(old, wish, fetched, progress):
                    thread = self._compute
                    progress.enter("empty")
                    await until_flipped.enter_async_context(self._scheduler.door.closed_for_swap())
                change = Change(fetched.source, fetched.revision, wish.model, wish.decay, wish.version)
                engine = await self._in(thread, progress, lambda: old.beside(change, progress.enter))
                if keeping.saves:
                    progress.enter("save")
                    await self._in(self._aside, progress, lambda: keeping.save(engine))
                if wish.hold:
                    progress.enter("hold")
                    house.hold(engine)
                    word.up.set()
                    await word.said.wait()
                progress.enter("record")
            await self._in(self._aside, progress, lambda: keeping.record(fetched, engine.info))
            house.flip(engine)

    async def add(
        self, beside: HostedEngine, wish: Wish, source: ModelSource | None, keeping: Keeping, progress: Progress
    ) -> HostedEngine:
        """The engine of a further reference, beside those that serve. beside: one of them, or the base of an adapter. Raises
        as `replace` does."""
        assert wish.reference is not None
        named = Named(wish.model, wish.reference, wish.base)
        async with asyncio.timeout(self._config.swap_timeout):
            progress.enter("fetch")
            fetched = await self._fetched(beside, wish, source, keeping, progress)
            if named.base is None:
                why = await self._in(self._aside, progress, lambda: beside.no_room_beside(fetched.source))
                if why is not None and self._config.swap_memory != "beside":
                    raise unavailable(f"it does not fit into memory beside the others: {why}; drop one of them first")
            progress.memory = "beside"
            engine = await self._in(self._aside, progress, lambda: made(named, beside, fetched, progress.enter))
            progress.enter("record")
        await self._in(self._aside, progress, lambda: keeping.record(fetched, engine.info))
        return engine

    async def _fetched(
        self, engine: HostedEngine, wish: Wish, source: ModelSource | None, keeping: Keeping, progress: Progress
    ) -> Fetched:
        if not engine.reads_files:
            return Fetched(wish.model, wish.revision)
        if source is None:
            code = self._config.trust_remote_code
            return await from_hub(wish.model, wish.revision, code=code, progress=progress)
        if wish.model == DEMO:
            return Fetched(DEMO)
        return await look_through(source, self._allowed.root_of(wish.model, source), keeping.for_files, progress)

    async def _stops_serving(self, old: HostedEngine, wish: Wish, fetched: Fetched, progress: Progress) -> bool:
        """Whether the new weights have to wait until nothing is computed: as configured, or as there is memory."""
        memory = self._config.swap_memory
        if memory == "auto":
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


def made(named: Named, beside: HostedEngine, fetched: Fetched, on_stage: OnStage) -> HostedEngine:
    """The engine of what was fetched, in a thread."""
    assert named.name is not None
    wanted = Addition(fetched.source, named.name, fetched.revision, offline=True)
    return beside.add(wanted, on_stage) if named.base is None else adapted(wanted, beside, on_stage)


def _let_go(thread: asyncio.Future[T]) -> None:
    """What came of work that nobody waits for: an engine, or an error."""
    if not thread.cancelled() and thread.exception() is None and hasattr(engine := thread.result(), "close"):
        engine.close()  # pyright: ignore
