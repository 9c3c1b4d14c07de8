"""The engines of a reference: the one that is asked, those before it that still compute what they had accepted, and one that
is held for the word to serve."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from grpo_client.protocol import ReferenceInfo

from grpo_server.engine.contract import HostedEngine
from grpo_server.naming import Named
from grpo_server.scheduler import Scheduler

logger = logging.getLogger(__name__)


class House:
    """All of it belongs to the event loop. compute: the thread in which an engine lets go of its weights, between two
    batches. named: what clients and operators know the reference by. default: it answers who names none."""

    def __init__(
        self, named: Named, engine: HostedEngine, scheduler: Scheduler, compute: Executor, *, default: bool
    ) -> None:
        self.named, self.default = named, default
        self.engine, self._scheduler, self._compute = engine, scheduler, compute
        self._leaving: dict[HostedEngine, asyncio.Task[None]] = {}
        self._held: HostedEngine | None = None
        self._empty = False

    @property
    def name(self) -> str:
        """What clients call it: without a name of its own, what it hosts."""
        return self.named.name or self.engine.info.model

    @property
    def engines(self) -> list[HostedEngine]:
        """All whose weights are in memory, the one that is asked first."""
        serving = [] if self._empty else [self.engine]
        return [*serving, *self._leaving, *([] if self._held is None else [self._held])]

    def hosting(self, info: ReferenceInfo) -> HostedEngine | None:
        """The engine with this reference; None when it has left."""
        return next((engine for engine in self.engines if engine.info == info), None)

    @property
    def held(self) -> HostedEngine | None:
        """Up, and asked by those alone who ask for its fingerprint."""
        return self._held

    def hold(self, engine: HostedEngine) -> None:
        """Until it is let go of, or asked by all."""
        self._held = engine

    def let_go_of_held(self) -> None:
        """It finishes what it has accepted, and leaves. Nothing where none is held."""
        if (engine := self._held) is not None:
            self._held = None
            self._leaving[engine] = asyncio.create_task(self._see_off(engine), name="let go of a held reference")

    def flip(self, engine: HostedEngine) -> None:
        """From now on this engine is asked. The one before finishes what it has accepted, and leaves."""
        old, self.engine, self._held = self.engine, engine, None
        if self.default:
            self._scheduler.host(engine)
        self._leaving[old] = asyncio.create_task(self._see_off(old), name="let go of a reference")

    async def _see_off(self, old: HostedEngine) -> None:
        await self._scheduler.tenancy.left(old)
        self._leaving.pop(old, None)
        self._empty = old is self.engine
        # nobody finds it any more; and nothing awaits between this and the check before it
        await asyncio.get_running_loop().run_in_executor(self._compute, old.close)
        logger.info("%s, version %d, has answered all that it accepted, and is let go of", self.name, old.info.version)

    async def left(self) -> None:
        """Until nobody needs any of its engines, which are asked no more, and all weights are let go of."""
        await self.alone()
        await self._see_off(self.engine)

    async def alone(self) -> None:
        """Until there is one engine."""
        while self._leaving:
            await asyncio.wait(self._leaving.values())

    def close(self) -> None:
        """Let go of all weights, on the compute thread; whoever still waits is told by the scheduler."""
        for task in self._leaving.values():
            task.cancel()
        for engine in self.engines:
            engine.close()
