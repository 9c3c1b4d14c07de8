"""What stands in Ray's HTTP proxies: who was asked and died before it answered is said in words that clients retry upon.

Ray's proxy sends nothing in that case, of which its HTTP server makes a bare 500. Set before Ray is started on a node, by
`grpo-server --ray` and by the files in deploy/:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=grpo_server.ray.proxy:middlewares
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grpo_server.errors import ErrorCode, ServiceError

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "grpo_server.ray.proxy:middlewares"
# Another replica can answer at once.
RETRY_AFTER_SECONDS = 0.05


def middlewares() -> list[Middleware]:
    """Called by Ray in each proxy."""
    return [Middleware(LostReplicas)]


class LostReplicas:
    """A 503 with Retry-After in place of no answer. Scoring is a pure function: it may be asked for again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = left = False

        async def told() -> Message:
            nonlocal left
            message = await receive()
            left = left or message["type"] == "http.disconnect"
            return message

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        await self._app(scope, told, answer)
        if begun or left:
            return
        lost = ServiceError(
            ErrorCode.REPLICA_LOST,
            "the replica that was asked is gone; nothing was computed that counts, send it again",
            retry_after=RETRY_AFTER_SECONDS,
        )
        await JSONResponse(lost.body(), lost.status, lost.headers())(scope, receive, send)
