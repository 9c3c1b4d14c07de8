"""HEAD wherever there is GET, as HTTP has it (RFC 9110, section 9.3.2): the same status and headers, and no body."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grpo_server.error_responses import SCOPE_ERROR_CODE
from grpo_server.errors import ErrorCode, ServiceError

SCOPE_HEAD = "grpo_server.head"
# What inner layers leave in the scope for outer ones.
_LEFT_INSIDE = ("route", SCOPE_ERROR_CODE)


class HeadAsGet:
    """ASGI middleware: routes see GET, the client gets no body. The framework would answer 405 to HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        inner = {**scope, "method": "GET", SCOPE_HEAD: True}  # the server keeps its own scope, and HEAD in it
        try:
            await self._app(inner, receive, send_without_body)
        finally:
            scope.update({name: inner[name] for name in _LEFT_INSIDE if name in inner})


def refuse_head(request: Request) -> None:
    """For a GET that takes something away. Raises ServiceError (405) when the client would not see what it took."""
    if request.scope.get(SCOPE_HEAD):
        raise ServiceError(ErrorCode.METHOD_NOT_ALLOWED, f"{request.scope['path']} does not take HEAD; use GET")
