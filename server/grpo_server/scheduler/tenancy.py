"""Who still needs which engine: requests from the moment they are read for it, and batches until their last thread is done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager


class Tenancy:
    """Counts for every engine what needs it. Belongs to one event loop."""

    def __init__(self) -> None:
        self._users: Counter[object] = Counter()
        self._free: dict[object, asyncio.Event] = {}

    def enter(self, engine: object) -> None:
        """One more needs this engine."""
        self._users[engine] += 1

    def leave(self, engine: object) -> None:
        """One of those is done with it."""
        self._users[engine] -= 1
        if not self._users[engine]:
            del self._users[engine]
            if (free := self._free.pop(engine, None)) is not None:
                free.set()

    @contextmanager
    def needing(self, engine: object) -> Generator[None]:
        """Inside, the engine is needed."""
        self.enter(engine)
        try:
            yield
        finally:
            self.leave(engine)

    async def left(self, engine: object) -> None:
        """Until nobody needs this engine, which is given to nobody any more."""
        while engine in self._users:
            await self._free.setdefault(engine, asyncio.Event()).wait()
