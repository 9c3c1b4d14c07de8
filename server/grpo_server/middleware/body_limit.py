"""No body grows beyond the limit in memory: it is refused by its Content-Length, or counted as it streams in."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grpo_server.errors import ErrorCode, ServiceError


class BodyLimit:
    """Raises ServiceError (413) for a body of more than max_bytes.

    Whoever reads the body gets the error as an exception. A framework may turn that into a response of its own; it is
    held back, and the 413 goes out instead.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large(f"{announced} bytes")

        seen = 0

        async def receive_counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes} bytes")
            return message

        async def send_if_within(message: Message) -> None:
            if seen <= self._max_bytes:
                await send(message)

        await self._app(scope, receive_counted, send_if_within)
        if seen > self._max_bytes:
            raise self._too_large(f"more than {self._max_bytes} bytes")

    def _too_large(self, size: str) -> ServiceError:
        return ServiceError(
            ErrorCode.BODY_TOO_LARGE,
            f"the body has {size} and the limit is {self._max_bytes} (--max-request-bytes); cut the request into "
            "smaller ones, or send safetensors, which take 4 bytes a token",
            param="body",
        )
