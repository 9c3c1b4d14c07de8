"""Who may use the service: bearer keys, one set for scoring and one for /admin.

Asked twice, and both must agree. `KeyGate` stands before the body is read, so that a stranger cannot make the server buffer
megabytes, and decides by the path below whatever prefix the application is mounted at. `check_route` is a dependency of
every route and decides by the route's own template, so that no arithmetic on a client's path can open one. Both are
closed unless a route is listed as open, so that one added later cannot be forgotten.
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
ADMIN_PREFIX = "/admin/"


@dataclass(frozen=True, slots=True)
class Keys:
    """Accepted keys, as the bytes of UTF-8. No `api` keys: scoring is open to all. No `admin` keys: /admin is closed to all.

    An admin key opens everything.
    """

    api: tuple[bytes, ...] = field(default=(), repr=False)
    admin: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def load(cls, config: ServerConfig) -> Keys:
        """Read key files and environment. Raises ValueError naming the setting when one gives no key that can be sent."""
        return cls(
            api=read_keys("api_key_file", config.api_key_file, config.api_key),
            admin=read_keys("admin_key_file", config.admin_key_file, config.admin_key),
        )

    def check(self, path: str, authorization: str | None) -> None:
        """Raises ServiceError (401 or 403) unless the bearer of this Authorization header may use this path.

        path: as the routes are declared, without the prefix of a mount.
        """
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
            return
        if path.startswith(ADMIN_PREFIX):
            if not self.admin:
                raise ServiceError(
                    ErrorCode.ADMIN_FORBIDDEN,
                    "this server has no admin key, so /admin is closed; start it with --admin-key-file",
                )
            self._compare(authorization, self.admin, "an admin key")
        elif self.api:
            self._compare(authorization, (*self.api, *self.admin), "an API key")

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
                f"the key in Authorization is not {what} of this server: check it against the server's key file",
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
        if scope["type"] == "http":
            self._keys.check(get_route_path(scope), Headers(scope=scope).get("authorization"))
        await self._app(scope, receive, send)


async def check_route(request: Request) -> None:
    """Dependency of every route. Raises ServiceError (401 or 403)."""
    keys: Keys = request.app.state.service.keys
    keys.check(request.scope["route"].path, request.headers.get("authorization"))
