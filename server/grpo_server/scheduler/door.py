"""Whether new work is taken: closed for a moment while the reference is replaced, for good when the server ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpo_server.errors import ErrorCode, ServiceError

# A swap takes as long as reading the new weights, a drain as long as starting the next server: unknown, so soon again.
RETRY_AFTER_SWAP_SECONDS = 1.0
RETRY_AFTER_DRAIN_SECONDS = 5.0


class Door:
    """Open until someone closes it; who closes it waits until what was let in before is done."""

    def __init__(self) -> None:
        self.swapping = False
        self.draining = False
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._swapped = asyncio.Event()
        self._swapped.set()

    def refuse_if_closed(self) -> None:
        """Raises ServiceError (503 with Retry-After) while draining or swapping."""
        if self.draining:
            raise draining("the server is shutting down and takes no new work")
        if self.swapping:
            raise ServiceError(
                ErrorCode.SWAPPING,
                "the reference is being replaced; come back in a moment",
                retry_after=RETRY_AFTER_SWAP_SECONDS,
            )

    def let_in(self) -> None:
        """A request, or a batch: it is under way until it is let out, on every thread."""
        self._inside += 1
        self._empty.clear()

    def let_out(self) -> None:
        """One of those that were let in is done."""
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    @asynccontextmanager
    async def closed_for_swap(self) -> AsyncIterator[None]:
        """Inside, nothing else is under way. Raises ServiceError (503) when it is closed already, or for good meanwhile."""
        self.refuse_if_closed()
        self.swapping = True
        self._swapped.clear()
        try:
            await self._empty.wait()
            if self.draining:
                self.refuse_if_closed()
            yield
        finally:
            self.swapping = False
            self._swapped.set()

    async def closed_for_good(self, timeout: float | None) -> bool:
        """True once nothing is under way, no swap either; False when that takes longer than timeout seconds."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
                await self._swapped.wait()
        except TimeoutError:
            return False
        return True


def draining(why: str) -> ServiceError:
    return ServiceError(
        ErrorCode.DRAINING, f"{why}; ask another replica or come back", retry_after=RETRY_AFTER_DRAIN_SECONDS
    )
