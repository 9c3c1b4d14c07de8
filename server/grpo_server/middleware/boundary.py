"""The outermost layer: a request gets its id, and leaves with a log line, its metrics and always a proper response."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grpo_server.access.caller import Caller
from grpo_server.error_responses import SCOPE_ERROR_CODE, response_of
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.logs import loggable, request_id
from grpo_server.middleware.key_gate import SCOPE_CALLER
from grpo_server.observability import Metrics
from grpo_server.scheduler.door import draining as refused_while_draining

logger = logging.getLogger("grpo_server.access")

REQUEST_ID_HEADER = "X-Request-Id"
# What may stand in a header and in a log line without being able to forge either.
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Paths that were never routed share one label: a scanner must not be able to grow the metrics.
UNROUTED = "unmatched"
# Asked every few seconds by orchestrators: logged at debug level while the answer stays what it was.
PROBES = frozenset({"/livez", "/readyz", "/health", "/health/", "/metrics", "/v2/health/live", "/v2/health/ready"})
# So long may it take to tell a client that its request is cut off by the end of the process.
SECONDS_TO_SAY_SO = 1.0


class Boundary:
    """ASGI middleware; nothing that an inner layer raises gets past it.

    draining: whether the process is about to end. A request that is cancelled then is answered with a 503.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, draining: Callable[[], bool] = lambda: False) -> None:
        self._app = app
        self._metrics = metrics
        self._draining = draining
        self._answers: dict[str, int] = dict.fromkeys(PROBES, HTTPStatus.OK)  # of each probe, the last status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id = _id_of(Headers(scope=scope).get(REQUEST_ID_HEADER))
        token = request_id.set(own_id)
        started = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = own_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the process ends now; whoever still waits is told where to turn
            if status is not None or not self._draining():
                raise
            refusal = refused_while_draining("the server stopped before this request was answered")
            async with asyncio.timeout(SECONDS_TO_SAY_SO):
                await response_of(scope, refusal)(scope, receive, send_with_id)
        except ServiceError as error:
            await response_of(scope, error)(scope, receive, send_with_id)
        except Exception:  # the last line: a bug becomes a 500 with an id to look for, and the process lives on
            logger.exception("unexpected error in %s %s", scope["method"], loggable(scope["path"]))
            if status is not None:
                raise  # half an answer is out: let the connection break, so that the client sees it is not whole
            error = ServiceError(
                ErrorCode.INTERNAL, f"unexpected error; the server's log has the details under request id {own_id}"
            )
            await response_of(scope, error)(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started)
            request_id.reset(token)

    def _record(self, scope: Scope, status: int | None, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNROUTED)
        code = status or ErrorCode.CLIENT_LEFT.status
        error_code = scope.get(SCOPE_ERROR_CODE)
        self._metrics.request_done(route, code, seconds, error_code)
        holder: Caller | None = scope.get(SCOPE_CALLER)
        if holder is not None:
            holder.account.answers[code] += 1
        level = logging.DEBUG if self._answers.get(route) == code else logging.INFO
        if route in PROBES:
            self._answers[route] = code
        logger.log(
            level,
            "%s %s %d %.1f ms%s%s",
            scope["method"],
            loggable(scope["path"]),
            code,
            seconds * 1000,
            f" {error_code}" if error_code else "",
            f" key {holder.name}" if holder else "",
            extra={"route": route, "status": code, "seconds": round(seconds, 6), "error": error_code}
            | ({"key": holder.name} if holder else {}),
        )


def _id_of(given: str | None) -> str:
    return given if given and _ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex
