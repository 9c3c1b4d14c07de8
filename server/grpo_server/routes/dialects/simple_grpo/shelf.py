"""Where scored uploads wait for a trainer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from grpo_server.errors import ErrorCode, ServiceError

# How long an upload waits while trainers take none: longer than a training step, shorter than a client's patience.
SECONDS_FOR_SHELF_ROOM = 60.0


class Shelf:
    """Scored uploads, first in first out, bounded in bytes. One event loop.

    What does not fit waits `patience` seconds for room, then is refused with 503.
    """

    def __init__(self, max_bytes: int, patience: float) -> None:
        self._max_bytes = max_bytes
        self._patience = patience
        self._held = 0
        self._frames: deque[tuple[bytes, Mapping[str, str]]] = deque()
        self._room = asyncio.Condition()

    async def reserve(self, nbytes: int) -> None:
        """Hold this many bytes. Raises ServiceError: 413 if they can never fit, 503 if they do not fit in time."""
        if nbytes > self._max_bytes:
            raise ServiceError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"the upload and its answer take {nbytes} bytes and the shelf holds {self._max_bytes}; send fewer rows, "
                "or start the server with a larger --max-queue-bytes",
                param="inputs",
            )
        try:
            async with asyncio.timeout(self._patience), self._room:
                await self._room.wait_for(lambda: self._held + nbytes <= self._max_bytes)
                self._held += nbytes
        except TimeoutError as error:
            raise ServiceError(
                ErrorCode.SHELF_FULL,
                f"{len(self._frames)} scored uploads wait and no trainer took one for {self._patience:g} s; "
                "start a trainer that asks GET /get, then upload again",
                retry_after=self._patience,
            ) from error

    async def release(self, nbytes: int) -> None:
        """Give up what was reserved."""
        async with self._room:
            self._held -= nbytes
            self._room.notify_all()

    def put(self, framed: bytes, label: Mapping[str, str]) -> None:
        """Lay down a frame for which room was reserved. label: who scored it."""
        self._frames.append((framed, label))

    async def take(self) -> tuple[bytes, Mapping[str, str]] | None:
        """The oldest frame with its label, or None."""
        if not self._frames:
            return None
        framed, label = self._frames.popleft()
        await self.release(len(framed))
        return framed, label
