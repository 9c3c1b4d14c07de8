"""Content-Digest (RFC 9530) on every answer that goes out in one piece, errors as well: see `grpo_client.content_digest`.

An answer in pieces must know its digest before the first of them goes out: `routes._answers` sees to it. Pages and files for
a browser, which come in pieces too, have none.
"""

from __future__ import annotations

from grpo_client.content_digest import HEADER, header_of
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class DigestOfAnswers:
    """ASGI middleware: holds back the head of an answer until its body is there. HEAD has no bytes to take one of."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "HEAD":
            await self._app(scope, receive, send)
            return
        head: Message | None = None

        async def send_with_digest(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start" and HEADER not in MutableHeaders(scope=message):
                head = message
                return
            if head is not None:
                if not message.get("more_body", False) and (body := message.get("body", b"")):
                    MutableHeaders(scope=head)[HEADER] = header_of([body])
                await send(head)
                head = None
            await send(message)

        await self._app(scope, receive, send_with_digest)
