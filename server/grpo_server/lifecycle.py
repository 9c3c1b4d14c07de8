"""The life of a server: loading, ready, swapping, draining; and what lives as long as it does: engine, scheduler, threads.

Routes ask it for the engine or the scheduler, and get a 503 with Retry-After while there is none.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from types import TracebackType
from typing import Protocol, Self

from grpo_client.protocol import ReferenceInfo

from grpo_server.config import ServerConfig
from grpo_server.engine.contract import EngineLoader, HostedEngine
from grpo_server.errors import ServiceError
from grpo_server.middleware.key_gate import Keys
from grpo_server.observability import Metrics
from grpo_server.phase import Phase, not_loaded, words
from grpo_server.scheduler import Scheduler
from grpo_server.scheduler.door import Door
from grpo_server.stages import Stages
from grpo_server.swapping.hosting import Hosting
from grpo_server.swapping.metrics import SwapMetrics
from grpo_server.swapping.opening import Opened, common_limits, open_all
from grpo_server.swapping.references import References
from grpo_server.swapping.state import StateDir
from grpo_server.swapping.swaps import Swaps
from grpo_server.swapping.wish import Wish
from grpo_server.threads import Threads
from grpo_server.uploading.receiving import Receiving
from grpo_server.uploading.start import open_uploads

logger = logging.getLogger(__name__)

# Letting go of the weights takes no time: a compute thread that has not done it by then is in the middle of something.
SECONDS_TO_CLOSE = 2.0


def _keep_what_is_loaded() -> None:
    """Take out of the collector's rounds what stays: they cost a third of a second each, in which no other thread runs."""
    gc.collect()
    gc.freeze()


class Together(Protocol):
    """Changes the reference of all replicas of a cluster at once; set on each by whoever runs them."""

    async def change(self, wish: Wish) -> ReferenceInfo:
        """Have all host it, or none. Raises ServiceError."""
        ...

    async def cancel(self) -> None:
        """End what is under way. Raises ServiceError."""
        ...


class Service:
    """Use as an async context manager; the model loads in the background after entering.

    `failed` is set when it could not be loaded, and `refusal` then says why if that is for the operator to mend; `loaded` when
    that is decided either way. `abandoned` tells, at the end, that the compute thread was left in the middle of a load or a
    batch, which nothing can interrupt. `address` is the URL to name in the log, set by whoever listens; `stages` is what the
    loader reports to. state: where a restart finds who was hosted; closed with the service.
    """

    def __init__(
        self, config: ServerConfig, loader: EngineLoader, stages: Stages | None = None, state: StateDir | None = None
    ) -> None:
        self.config = config
        self.stages = stages or Stages()
        self.address = ""
        self.keys = Keys.load(config)
        self.metrics = Metrics()
        self._swap_metrics = SwapMetrics(self.metrics.registry)
        self.metrics.watch_ready(lambda: self.phase is Phase.READY)
        self.started_at = int(time.time())
        self.together: Together | None = None
        self.loaded = asyncio.Event()
        self.failed = asyncio.Event()
        self.refusal: str | None = None
        self.abandoned = False
        self._failure = ""
        self._loader = loader
        self._state = state
        self.uploads: Receiving | None = open_uploads(config, state and state.recorded and state.recorded.model)
        self._references: References | None = None
        self._swaps: Swaps | None = None
        self._scheduler: Scheduler | None = None
        self.door = Door()
        self._load_task: asyncio.Task[None] | None = None
        self._threads = Threads()
        self.in_codec = self._threads.in_codec
        self.in_tokenizer = self._threads.in_tokenizer

    async def __aenter__(self) -> Self:
        self._load_task = asyncio.create_task(self._load(), name="load the model")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_door()
        assert self._load_task is not None
        self._load_task.cancel()
        await asyncio.wait([self._load_task])
        if self._swaps is not None:
            await self._swaps.stop()
        if self._scheduler is not None:
            await self._scheduler.__aexit__(None, None, None)
        closed = asyncio.get_running_loop().run_in_executor(self._threads.compute, self._close)
        await asyncio.wait([closed], timeout=SECONDS_TO_CLOSE)
        self.abandoned = not closed.done() or (self._swaps is not None and self._swaps.in_thread)
        self._threads.shut_down()
        if self._state is not None:
            self._state.close()
        if self.uploads is not None:
            self.uploads.close()
        gc.unfreeze()

    def _close(self) -> None:
        if self._references is not None:
            self._references.close()

    def _loaded(self) -> Opened:
        return open_all(self.config, self._loader, self._state, self.stages.enter)

    async def _load(self) -> None:
        """In the compute thread, as the whole life of the model; the event loop stays free for the probes."""
        future = asyncio.get_running_loop().run_in_executor(self._threads.compute, self._loaded)
        await asyncio.wait([future])
        if (error := future.exception()) is not None:
            self._failure = f"the model could not be loaded: {error}"
            # said on purpose, in a sentence; its traceback is for developers
            if isinstance(error, OSError | ValueError):
                self.refusal = str(error)
            logger.error("%s", self._failure, exc_info=None if self.refusal is not None else error)
            logger.debug("where that was", exc_info=error)
            self.failed.set()
            self.loaded.set()
            return
        self.stages.leave()
        _keep_what_is_loaded()
        opened = future.result()
        limits = self.config.scheduler(common_limits([engine for _, engine in opened]))
        self.metrics.limits(limits)
        scheduler = Scheduler(
            opened[0][1],
            limits,
            door=self.door,
            compute_thread=self._threads.compute,
            prepare_thread=self._threads.prepare,
            plan_threads=self._threads.codec,
            listener=self.metrics,
        )
        hosting = Hosting(self.config, opened, scheduler, self.metrics, self._threads.compute)
        self._references = references = hosting.references
        if self.door.draining:  # told to end meanwhile: no door is opened
            self.loaded.set()
            return
        self._scheduler = await scheduler.__aenter__()
        self._swaps = Swaps(
            self.config,
            hosting,
            scheduler,
            state=self._state,
            metrics=self._swap_metrics,
            aside=self._threads.aside,
            compute=self._threads.compute,
            uploads=None if self.uploads is None else self.uploads.area,
        )
        self.metrics.watch(
            queue_requests=lambda: scheduler.admission.requests,
            queue_tokens=lambda: scheduler.admission.tokens,
            queue_bytes=lambda: scheduler.admission.bytes,
            cache_bytes=lambda: scheduler.cache.nbytes,
        )
        for house in references:
            hosting.announce(house)
        self.loaded.set()
        logger.info("ready after %.1f s%s", self.stages.age, f": {self.address} takes requests" if self.address else "")

    @property
    def phase(self) -> Phase:
        if self.door.draining:
            return Phase.DRAINING
        if self.failed.is_set():
            return Phase.FAILED
        if self._scheduler is None or not self.loaded.is_set():
            return Phase.LOADING
        return Phase.SWAPPING if self.door.swapping else Phase.READY

    @property
    def progress(self) -> str:
        """For people: what the server is busy with, or why it does not come up."""
        loading = " and ".join(one.label for one in self.config.references)
        return words(self.phase, loading=loading, stage=str(self.stages), failure=self._failure)

    @property
    def engine(self) -> HostedEngine:
        """Of the default reference. Raises ServiceError (503) while there is none."""
        return self.references.default.engine

    @property
    def references(self) -> References:
        """Raises ServiceError (503) while there are none."""
        if self._references is None or self._scheduler is None:
            raise self._not_loaded()
        return self._references

    def hosting(self, info: ReferenceInfo) -> HostedEngine | None:
        """The engine that answers as this reference; None when it has left."""
        return None if self._references is None else self._references.hosting(info)

    @property
    def held(self) -> HostedEngine | None:
        """The engine that waits for the word to serve, in the place of the default reference."""
        return None if self._references is None else self._references.default.held

    def pinned(self, fingerprint: str, model: str | None) -> HostedEngine | None:
        """The same under this name, if it is this reference."""
        held = self.references.named(model).held
        return held if held is not None and held.info.fingerprint == fingerprint else None

    @property
    def swaps(self) -> Swaps:
        """Raises ServiceError (503) while nothing is hosted."""
        if self._swaps is None:
            raise self._not_loaded()
        return self._swaps

    @property
    def scheduler(self) -> Scheduler:
        """Raises ServiceError (503) while there is none."""
        if self._scheduler is None:
            raise self._not_loaded()
        return self._scheduler

    def accepted_bytes(self) -> int:
        """Memory of the requests and answers that the scheduler has accepted."""
        return 0 if self._scheduler is None else self._scheduler.admission.bytes

    def _not_loaded(self) -> ServiceError:
        return not_loaded(self.phase, self.progress)

    # --- ending ---------------------------------------------------------------------------------------------------

    def close_door(self) -> None:
        """Refuse new work from now on."""
        self.door.draining = True

    async def drain(self, timeout: float) -> bool:
        """Refuse new work and wait for what was accepted, a swap included. False when the time was not enough."""
        self.close_door()
        if self._scheduler is None:
            return True
        if self._swaps is None:
            return await self._scheduler.drain(timeout)
        ended = asyncio.create_task(self._swaps.drain(), name="wait for the swap")
        in_time = await self._scheduler.drain(timeout)
        await asyncio.wait([ended], timeout=timeout)
        return in_time and ended.done()
