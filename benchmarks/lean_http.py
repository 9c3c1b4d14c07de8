"""HTTP/1.1 over a few kept-alive connections, with next to no work per request: a load generator on the cores of the server
that it measures must not be what it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

# Less than any server keeps an idle connection.
KEEP_ALIVE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class LeanHttp:
    """One host. Connections are opened as requests overlap, and used again."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []  # free since, oldest first

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Raises OSError or asyncio.IncompleteReadError when the connection breaks."""
        reader, writer = await self._connection()
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        fields = {name.lower(): value for name, value in fields.items()}
        reply = Reply(int(head[0].split(" ", 2)[1]), fields, await reader.readexactly(int(fields["content-length"])))
        self._free.append((time.monotonic(), reader, writer))
        return reply

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._free:
            since, reader, writer = self._free.pop()
            if time.monotonic() - since < KEEP_ALIVE_SECONDS:
                return reader, writer
            writer.close()
            await self.close()  # the others are older still
        return await asyncio.open_connection(self._host, self._port)

    async def close(self) -> None:
        while self._free:
            self._free.pop()[2].close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[LeanHttp]:
    """url: http://host:port"""
    host, _, port = url.removeprefix("http://").partition(":")
    http = LeanHttp(host, int(port))
    try:
        yield http
    finally:
        await http.close()
