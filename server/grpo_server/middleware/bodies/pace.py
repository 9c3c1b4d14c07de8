"""How slow a body may come: in every span of so many seconds, at least MIN_BYTES_PER_SECOND times as many bytes.

A link that is slow and goes on is waited for, however large the body; one that stands still, or drips to hold memory, is not.
Spans and not an average, so that nobody can send much first and rest on it.
"""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive

from grpo_server.errors import ErrorCode, ServiceError

# As Kestrel has it; a modem of 1990 is faster.
MIN_BYTES_PER_SECOND = 240


class Pace:
    """receive: the ASGI callable of one request. span: seconds, None to wait for ever."""

    def __init__(self, receive: Receive, span: float | None) -> None:
        self._receive = receive
        self._span = span
        self._least = 0 if span is None else int(MIN_BYTES_PER_SECOND * span)
        self._begin()

    def _begin(self) -> None:
        self._bytes = 0
        self._ends = None if self._span is None else asyncio.get_running_loop().time() + self._span

    async def next(self) -> Message:
        """The next message. Raises ServiceError (408) when the span is over and too little came."""
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._receive()
        except TimeoutError as error:
            raise ServiceError(
                ErrorCode.REQUEST_TIMEOUT,
                f"of the body came {self._bytes} bytes in {self._span:g} s (--stall-timeout), and {self._least} are the "
                "least; send it again, faster or in smaller requests",
                param="body",
            ) from error
        self._bytes += len(message.get("body", b""))
        if self._bytes >= self._least:
            self._begin()
        return message
