"""The line itself: httpx, and nothing of what is said over it. The one module that knows which HTTP library it is.

Both transports turn the library's failures into `ConnectionFailed`; a response of any status is a `Reply`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from grpo_client.calls import Call, Reply
from grpo_client.errors import ConnectionFailed

# What a test or an in-process server may be plugged in as.
SyncLine = httpx.BaseTransport
AsyncLine = httpx.AsyncBaseTransport


@dataclass(frozen=True, slots=True)
class LineSettings:
    """timeout: seconds without a byte before a call counts as lost; connecting gets at most ten of them.

    connections: kept open at most, over all servers. headers: sent with every call.
    """

    timeout: float
    connections: int
    headers: dict[str, str]

    def _timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeout, connect=min(10.0, self.timeout))

    def _limits(self) -> httpx.Limits:
        return httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections)

    def sync(self, line: SyncLine | None) -> httpx.Client:
        return httpx.Client(timeout=self._timeout(), limits=self._limits(), headers=self.headers, transport=line)

    def asynchronous(self, line: AsyncLine | None) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=self._timeout(), limits=self._limits(), headers=self.headers, transport=line)


class SyncTransport:
    """A pool of connections for threads."""

    def __init__(self, settings: LineSettings, line: SyncLine | None = None) -> None:
        self._http = settings.sync(line)

    def send(self, call: Call, base_url: str) -> Reply:
        """One try. Raises ConnectionFailed when no whole response came."""
        with _failures(base_url):
            return _reply(self._http.send(_request(self._http, call, base_url)))

    def close(self) -> None:
        self._http.close()


class AsyncTransport:
    """A pool of connections for one event loop."""

    def __init__(self, settings: LineSettings, line: AsyncLine | None = None) -> None:
        self._http = settings.asynchronous(line)

    async def send(self, call: Call, base_url: str) -> Reply:
        """One try. Raises ConnectionFailed when no whole response came."""
        with _failures(base_url):
            return _reply(await self._http.send(_request(self._http, call, base_url)))

    async def aclose(self) -> None:
        await self._http.aclose()


def _request(http: httpx.Client | httpx.AsyncClient, call: Call, base_url: str) -> httpx.Request:
    headers = {**call.headers, "X-Request-Id": call.request_id}
    return http.build_request(call.method, base_url + call.path, content=call.body, headers=headers)


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.headers, response.content, str(response.url))


@contextmanager
def _failures(base_url: str) -> Generator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ConnectionFailed(f"{base_url}: {type(error).__name__}: {error or 'no further word'}") from error
