"""A TCP proxy that does to connections what networks do to them. It knows no HTTP, but where a head ends and a body begins."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

CHUNK = 2**14


class Cut(Exception):
    """The connection ends here."""


@dataclass
class Stream:
    """One direction of one connection: how far its bytes are known to be a head or a body."""

    in_head: bool = False

    def body_from(self, data: bytes) -> int:
        """Where the body begins in what came next; len(data) when all of it is head."""
        starts = data.startswith((b"GET ", b"POST ", b"PUT ", b"DELETE ", b"HTTP/1."))
        if not (starts or self.in_head):
            return 0
        end = data.find(b"\r\n\r\n")
        self.in_head = end < 0
        return len(data) if end < 0 else end + 4


class Weather(Protocol):
    """What happens to the bytes that pass."""

    async def passing(self, data: bytes, stream: Stream, rng: random.Random) -> tuple[bytes, bool]:
        """What arrives of them, and whether the connection breaks behind it."""
        ...


class Calm:
    async def passing(self, data: bytes, stream: Stream, rng: random.Random) -> tuple[bytes, bool]:
        stream.body_from(data)
        return data, False


@dataclass
class Proxy:
    """In front of one server. weather: may be changed at any time, from any thread. harmed: how often bytes did not arrive as
    they were sent."""

    target: int
    seed: int = 0
    weather: Weather = field(default_factory=Calm)
    port: int = 0
    harmed: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._connection, "127.0.0.1", self.port))
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def reset_all(self) -> None:
        """Every connection that is open ends with a reset."""
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in [*self._open]])

    def close(self) -> None:
        async def close() -> None:
            self._server.close()
            for writer in [*self._open]:
                writer.transport.abort()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._run(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, here = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()  # nobody is behind this: a client must see it as it is
            return
        ends = (writer, here)
        self._open.update(ends)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, here))
                group.create_task(self._pass(there, writer))
        except* (Cut, OSError):
            pass
        finally:
            self._open.difference_update(ends)
            for end in ends:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = Stream()
        while data := await reader.read(CHUNK):
            arrives, breaks = await self.weather.passing(data, stream, self._rng)
            self.harmed += breaks or arrives != data
            writer.write(arrives)
            await writer.drain()
            if breaks:
                with contextlib.suppress(OSError):
                    writer.write_eof()  # what was written arrives before the reset
                raise Cut
        raise Cut
