"""Who may use the service: bearer keys, one set for scoring and one for /admin.

The gate is closed unless a path is listed as open, so that a route added later cannot be forgotten. It stands before the
body is read: a stranger cannot make the server buffer megabytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from grpo_server.config import ServerConfig
from grpo_server.errors import ErrorCode, ServiceError

# Probes, metrics and documentation: what tells nothing about prompts or weights and computes nothing.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/health/", "/metrics", "/docs", "/redoc", "/openapi.json"})
OPEN_PREFIXES = ("/v2/health/",)
ADMIN_PREFIX = "/admin/"


@dataclass(frozen=True, slots=True)
class Keys:
    """Accepted keys. No `api` keys: scoring is open to all. No `admin` keys: /admin is closed to all.

    An admin key opens everything.
    """

    api: tuple[bytes, ...] = field(default=(), repr=False)
    admin: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def load(cls, config: ServerConfig) -> Keys:
        """Read key files and environment. Raises ValueError naming the setting when a file gives no key."""
        return cls(
            api=_keys("api_key_file", config.api_key_file, config.api_key),
            admin=_keys("admin_key_file", config.admin_key_file, config.admin_key),
        )

    def check(self, path: str, authorization: str | None) -> None:
        """Raises ServiceError (401 or 403) unless the bearer of this Authorization header may use this path."""
        if path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
            return
        given = _bearer(authorization)
        if path.startswith(ADMIN_PREFIX):
            if not self.admin:
                raise ServiceError(
                    ErrorCode.ADMIN_FORBIDDEN,
                    "this server has no admin key, so /admin is closed; start it with --admin-key-file",
                )
            if not _is_one_of(given, self.admin):
                raise _unauthorized("an admin key")
        elif self.api and not _is_one_of(given, (*self.api, *self.admin)):
            raise _unauthorized("an API key")


def _unauthorized(what: str) -> ServiceError:
    return ServiceError(
        ErrorCode.INVALID_API_KEY,
        f"this route needs {what}: send it as 'Authorization: Bearer KEY'",
        param="Authorization",
    )


def _bearer(authorization: str | None) -> bytes:
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip().encode() if scheme.lower() == "bearer" else b""


def _is_one_of(given: bytes, keys: Iterable[bytes]) -> bool:
    """Compared with every key in constant time: how long it takes tells nothing about how much was right."""
    matches = [hmac.compare_digest(given, key) for key in keys]
    return any(matches)


def _keys(setting: str, path: Path | None, from_environment: SecretStr | None) -> tuple[bytes, ...]:
    """Keys of a file, one a line, lines with # in front left out, and the one of the environment."""
    keys: list[bytes] = []
    if path is not None:
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise ValueError(f"{setting}: cannot read {path}: {error.strerror}") from error
        keys = [line.strip().encode() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise ValueError(f"{setting}: {path} holds no key; write one a line")
    if from_environment is not None:
        if not (key := from_environment.get_secret_value().strip()):
            raise ValueError(
                f"{setting.removesuffix('_file')}: the key in the environment is empty; unset it, or set one"
            )
        keys.append(key.encode())
    return tuple(keys)


class KeyGate:
    """ASGI middleware: lets a request through, or raises ServiceError."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._keys.check(scope["path"], Headers(scope=scope).get("authorization"))
        await self._app(scope, receive, send)
