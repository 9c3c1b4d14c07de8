"""Who may use the service: bearer keys, for scoring, for /admin and for /metrics.

Asked twice, and both must agree. `KeyGate` stands before the body is read, so that a stranger cannot make the server buffer
megabytes, and decides by the path below whatever prefix the application is mounted at. `check_route` is a dependency of
every route and decides by the route's own template, so that no arithmetic on a client's path can open one. Both are
closed unless a route is listed as open, so that one added later cannot be forgotten.

Whose key it is is found out once, by the gate, and holds for the whole request, whatever becomes of the key meanwhile.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastapi import Request
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from grpo_server.access.caller import Caller, caller
from grpo_server.access.caller import Scope as KeyScope
from grpo_server.access.named_keys import NamedKeys
from grpo_server.config import ServerConfig
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.middleware.keys import bearer_of, read_keys

# Probes, metrics and documentation: what tells nothing about prompts or weights and computes nothing.
DOCUMENTATION = {
    "/openapi.json",
    "/docs",
    "/docs/start.js",
    "/docs/swagger-ui-bundle.js",
    "/docs/swagger-ui.css",
    "/redoc",
}
# The inspector's page and its files; what it asks, /ui/api, is not among them.
INSPECTOR = {"/ui", "/ui/", "/ui/softmax", "/ui/runs", "/ui/server"}
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/health/", "/metrics", *DOCUMENTATION, *INSPECTOR})
OPEN_PREFIXES = ("/v2/health/", "/ui/files/")
METRICS_PATH = "/metrics"
ADMIN_PREFIX = "/admin/"
# Below which asking is scoring's, and changing is an admin's.
CHANGED_BY_ADMINS = ("/v1/references",)
READING = frozenset({"GET", "HEAD"})
# Where the gate leaves the holder of a named key in the ASGI scope, for the routes, the log and the metrics.
SCOPE_CALLER = "grpo_server.caller"


@dataclass(frozen=True, slots=True)
class Keys:
    """Accepted keys: of key files, as the bytes of UTF-8, and named ones, as their file says now.

    An admin key of a key file opens everything; a named key what its scopes say. Without any key for it, scoring is open to
    all; /metrics is, unless there are named keys; /admin is closed to all.
    """

    api: tuple[bytes, ...] = field(default=(), repr=False)
    admin: tuple[bytes, ...] = field(default=(), repr=False)
    named: NamedKeys | None = None

    @classmethod
    def load(cls, config: ServerConfig) -> Keys:
        """Read key files and environment. Raises ValueError naming the setting when one gives no key that can be sent."""
        return cls(
            api=read_keys("api_key_file", config.api_key_file, config.api_key),
            admin=read_keys("admin_key_file", config.admin_key_file, config.admin_key),
            named=NamedKeys(config.keys_file) if config.keys_file is not None else None,
        )

    def holder(self, authorization: str | None) -> Caller | None:
        """Whose named key this is; None: nobody's."""
        if self.named is None or (given := bearer_of(authorization)) is None:
            return None
        return self.named.ring.holder(given)

    def check(self, path: str, authorization: str | None, holder: Caller | None, method: str) -> None:
        """Raises ServiceError (401 or 403) unless the bearer of this Authorization header may use this path.

        path: as the routes are declared, without the prefix of a mount. holder: of that key, if it is a named one. method: of
        the request.
        """
        if (scope := self._scope_of(path, method)) is None:
            return
        if holder is not None:
            if scope not in holder.scopes:
                raise _out_of_scope(holder, scope)
        elif scope == "admin":
            if not self.admin and self.named is None:
                raise ServiceError(
                    ErrorCode.ADMIN_FORBIDDEN,
                    "this server has no admin key, so what changes its references is closed; start it with --admin-key-file",
                )
            self._compare(authorization, self.admin, "an admin key")
        elif scope == "metrics":
            self._compare(authorization, self.admin, "a key for /metrics")
        elif self.api or self.named is not None:
            self._compare(authorization, (*self.api, *self.admin), "an API key")

    def _scope_of(self, path: str, method: str) -> KeyScope | None:
        """What a key must be good for to use this path; None: the path is open."""
        if path == METRICS_PATH and self.named is not None:
            return "metrics"
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
            return None
        if path.startswith(CHANGED_BY_ADMINS) and method not in READING:
            return "admin"
        return "admin" if path.startswith(ADMIN_PREFIX) else "score"

    def _compare(self, authorization: str | None, keys: Iterable[bytes], what: str) -> None:
        given = bearer_of(authorization)
        if given is None:
            raise ServiceError(
                ErrorCode.MISSING_API_KEY,
                f"this route needs {what} and the request has none: send it as 'Authorization: Bearer KEY'",
                param="Authorization",
            )
        if not _is_one_of(given, keys):
            raise ServiceError(
                ErrorCode.INVALID_API_KEY,
                f"the key in Authorization is not {what} of this server: check it against the server's key files",
                param="Authorization",
            )


def _out_of_scope(holder: Caller, scope: KeyScope) -> ServiceError:
    return ServiceError(
        ErrorCode.INSUFFICIENT_SCOPE,
        f"the key {holder.name} has the scopes {', '.join(sorted(holder.scopes))}, and this route needs {scope}: send a key "
        "that has it, or add it in the keys file",
        param="Authorization",
    )


def _is_one_of(given: bytes, keys: Iterable[bytes]) -> bool:
    """Compared with every key in constant time: how long it takes tells nothing about how much was right."""
    matches = [hmac.compare_digest(given, key) for key in keys]
    return any(matches)


class KeyGate:
    """ASGI middleware: lets a request through, or raises ServiceError. There are no websockets here: they are closed."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose(reason="there are no websockets here")(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        holder = scope[SCOPE_CALLER] = self._keys.holder(authorization)
        self._keys.check(get_route_path(scope), authorization, holder, scope["method"])
        token = caller.set(holder)
        try:
            await self._app(scope, receive, send)
        finally:
            caller.reset(token)


async def check_route(request: Request) -> None:
    """Dependency of every route. Raises ServiceError (401 or 403)."""
    keys: Keys = request.app.state.service.keys
    holder: Caller | None = request.scope[SCOPE_CALLER]
    keys.check(request.scope["route"].path, request.headers.get("authorization"), holder, request.method)
