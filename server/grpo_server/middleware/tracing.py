"""A span for every request, in the trace that its client names (W3C traceparent). There is none without the extra `otel`."""

from __future__ import annotations

from grpo_client import tracing
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grpo_server.access.caller import Caller
from grpo_server.middleware.boundary import PROBES, REQUEST_ID_HEADER
from grpo_server.middleware.key_gate import SCOPE_CALLER


class Tracing:
    """ASGI middleware, outside all others, so that its span has the status that the client sees. Probes are not traced."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) in PROBES:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "HTTP"
        with tracing.span(method, {"http.request.method": method}, kind="SERVER", carrier=Headers(scope=scope)) as span:

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.answered(message["status"], error_from=500)
                    request_id = Headers(raw=message["headers"]).get(REQUEST_ID_HEADER)
                    holder: Caller | None = scope.get(SCOPE_CALLER)
                    span.set({"grpo.request_id": request_id, "grpo.key": holder.name if holder else None})
                    if (route := getattr(scope.get("route"), "path", None)) is not None:
                        span.rename(f"{method} {route}")  # known only now, and of a bounded number
                        span.set({"http.route": route})
                await send(message)

            await self._app(scope, receive, send_noted)
