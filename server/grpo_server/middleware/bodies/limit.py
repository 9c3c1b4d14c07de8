"""No body grows beyond its limit in memory, whoever sends it and however slowly, packed or not.

A body is read at once when the route first asks for it: counted against the limit of one body and against what all may
hold together (`byte_budget`), held to a least speed, compared with its Content-Digest if it has one, unpacked
(`content_coding`), and handed over whole. A body that no route asks for is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from grpo_client.content_digest import HEADER, ContentDigest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grpo_server.errors import DigestMismatch, ErrorCode, ServiceError
from grpo_server.middleware.bodies import coding as content_coding
from grpo_server.middleware.bodies.budget import ByteBudget
from grpo_server.middleware.bodies.pace import Pace
from grpo_server.middleware.bodies.store import ByteStore

# Unpacked in a thread, then counted on the loop: so much may be unpacked and not counted.
STEP_BYTES = 2**20
# Decoders at work at the same time: each has a window in memory, and more would not be faster.
UNPACKING = 2


class BodyLimit:
    """ASGI middleware. Raises ServiceError: 400 for a body that changed on the way or cannot be unpacked, 408 for one
    that stands still, 413 beyond max_bytes, 415 for an unknown Content-Encoding, 429 when `budget` has no room.

    Whoever reads the body gets the error as an exception. A framework may turn that into a response of its own; it is
    held back, and ours goes out instead.

    in_thread: runs a function off the event loop. stall_seconds: see `pace`. streamed: whether a route takes its body as it
    comes and keeps none of it in memory; such a body is held to its pace alone.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        budget: ByteBudget | None = None,
        in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread,
        stall_seconds: float | None = None,
        streamed: Callable[[Scope], bool] = lambda scope: False,
    ) -> None:
        self._app = app
        self._streamed = streamed
        self._max_bytes = max_bytes
        self._budget = budget or ByteBudget(2 * max_bytes)
        self._in_thread = in_thread
        self._stall_seconds = stall_seconds
        self._unpacking = asyncio.Semaphore(UNPACKING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._streamed(scope):
            await self._app(scope, Pace(receive, self._stall_seconds).next, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large(f"{announced} bytes")

        body = _Body(self._budget)
        refusal: ServiceError | None = None
        read = False

        async def receive_whole() -> Message:
            nonlocal read, refusal
            if refusal is not None:
                raise refusal
            if read:
                return await receive()
            read = True
            try:
                coding = _coding_of(headers)
                await self._collect(body, receive, headers.get(HEADER))
                if coding is not None:
                    await self._unpack(body, coding)
            except ServiceError as error:
                refusal = error
                raise
            return {"type": "http.request", "body": body.take(), "more_body": False}

        async def send_unless_refused(message: Message) -> None:
            if refusal is None:
                await send(message)

        try:
            await self._app(scope, receive_whole, send_unless_refused)
            if refusal is not None:
                raise refusal
        finally:
            body.release()

    async def _collect(self, body: _Body, receive: Receive, digest_told: str | None) -> None:
        pace, digest = Pace(receive, self._stall_seconds), ContentDigest()
        more = True
        while more:
            message = await pace.next()
            if message["type"] == "http.disconnect":
                raise ServiceError(ErrorCode.CLIENT_LEFT, "the client closed the connection before its body was whole")
            body.add(message.get("body", b""))
            if digest_told is not None:
                digest.add(message.get("body", b""))
            if body.size > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes} bytes")
            more = message.get("more_body", False)
        if not digest.fits(digest_told):
            raise DigestMismatch

    async def _unpack(self, body: _Body, coding: str) -> None:
        """Replace a packed body by the unpacked one. Both are held meanwhile."""
        packed = body.take()
        unpacked = content_coding.chunks(packed, coding, STEP_BYTES)
        async with self._unpacking:
            while True:
                try:
                    chunk = await self._in_thread(next, unpacked, None)
                except content_coding.CorruptBody as error:
                    raise ServiceError(ErrorCode.MALFORMED, str(error), param="Content-Encoding") from error
                if chunk is None:
                    break
                body.add(chunk)
                if body.size > self._max_bytes:
                    raise self._too_large(f"more than {self._max_bytes} bytes when unpacked")
        body.give_back(len(packed))

    def _too_large(self, size: str) -> ServiceError:
        return ServiceError(
            ErrorCode.BODY_TOO_LARGE,
            f"the body has {size} and the limit is {self._max_bytes} (--max-request-bytes); cut the request into "
            "smaller ones, or send safetensors, which take 4 bytes a token",
            param="body",
        )


class _Body:
    """The bytes of one body, every one of them charged until `release`."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._store = ByteStore()
        self._charged = 0

    @property
    def size(self) -> int:
        return self._store.size

    def add(self, data: bytes) -> None:
        """Raises ServiceError when there is no room."""
        self._budget.charge(len(data), self._charged)
        self._charged += len(data)
        self._store.add(data)

    def take(self) -> bytes:
        """The bytes in one piece, still charged."""
        return self._store.take()

    def give_back(self, nbytes: int) -> None:
        self._budget.release(nbytes)
        self._charged -= nbytes

    def release(self) -> None:
        self._store.drop()
        self.give_back(self._charged)


def _coding_of(headers: Headers) -> str | None:
    """The one coding of a body, None for a plain one. Raises ServiceError (415) for one that is not unpacked here."""
    given = [c.strip().lower() for line in headers.getlist("content-encoding") for c in line.split(",")]
    named = [c for c in given if c not in ("", "identity")]
    if not named:
        return None
    if len(named) > 1 or named[0] not in content_coding.codings():
        raise UnknownCoding(", ".join(named))
    return named[0]


class UnknownCoding(ServiceError):
    """A body is packed in a way that is not unpacked here."""

    def __init__(self, named: str) -> None:
        super().__init__(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Encoding is {named[:100]}; send the body plain, or in one of: {content_coding.accepted()}",
            param="Content-Encoding",
        )

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "Accept-Encoding": content_coding.accepted()}  # RFC 9110, section 15.5.16
