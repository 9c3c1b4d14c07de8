"""What a client is told, checked once, and what both clients make of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypedDict, get_args
from urllib.parse import urlsplit

from grpo_client.balancer import Balancer
from grpo_client.calls import Encoding
from grpo_client.pin import FingerprintPin
from grpo_client.policy import RetryPolicy
from grpo_client.transport import LineSettings

API_KEY_VARIABLE = "GRPO_API_KEY"
_SPARE_CONNECTIONS = 4  # for info() and health() beside a full set of scoring requests


class ClientOptions(TypedDict, total=False):
    """Options of `ReferenceClient` and `AsyncReferenceClient`, all optional.

    api_key: sent as a bearer token; else the environment variable GRPO_API_KEY; never shown.
    timeout: seconds without a byte before a try counts as lost (300).
    max_wait: seconds over which a failing request is tried again (900); 0 tries once. See `policy`.
    encoding: "tensors" (the default; 4 bytes a figure) or "json" (for proxies and eyes that want it).
    fingerprint: None, "first" (whoever answers first is the one) or the reference's fingerprint. See `pin`.
    max_request_tokens: bigger requests are cut into several (32768).
    max_in_flight: requests sent at once (4).
    retry: a whole `RetryPolicy` instead of max_wait.
    """

    api_key: str | None
    timeout: float
    max_wait: float
    encoding: Encoding
    fingerprint: str | None
    max_request_tokens: int
    max_in_flight: int
    retry: RetryPolicy | None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """`ClientOptions` with defaults filled in and checked."""

    urls: tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    encoding: Encoding = "tensors"
    fingerprint: str | None = None
    max_request_tokens: int = 32_768
    max_in_flight: int = 4
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    @classmethod
    def of(cls, base_url: str | Sequence[str], options: ClientOptions) -> ClientSettings:
        """Fill in what the options leave out. Raises ValueError that names the argument at fault."""
        urls = (base_url,) if isinstance(base_url, str) else tuple(base_url)
        given: dict[str, Any] = dict(options)
        max_wait = given.pop("max_wait", None)
        if given.get("retry") is None:
            given["retry"] = RetryPolicy() if max_wait is None else RetryPolicy(max_wait=max_wait)
        elif max_wait is not None:
            raise ValueError("give either max_wait or retry (which has its own max_wait), not both")
        given["api_key"] = given.get("api_key") or os.environ.get(API_KEY_VARIABLE) or None
        return cls(urls=tuple(_base(url) for url in urls), **given)

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("base_url is an empty list; give at least one, such as http://localhost:8000")
        if self.encoding not in get_args(Encoding):
            raise ValueError(f"encoding must be 'tensors' or 'json', got {self.encoding!r}")
        for name in ("max_request_tokens", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")

    def line(self) -> LineSettings:
        """What the transport needs to know."""
        headers = {"User-Agent": f"grpo-client/{version('grpo-refserver')}"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return LineSettings(self.timeout, self.max_in_flight + _SPARE_CONNECTIONS, headers)

    def balancer(self) -> Balancer:
        """A fresh balancer over the servers."""
        return Balancer(self.urls, clock=self.retry.clock)

    def pin(self) -> FingerprintPin:
        """A fresh pin."""
        return FingerprintPin(self.fingerprint)


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"base_url must look like http://localhost:8000, got {url!r}")
    if parts.username or parts.password:
        raise ValueError("base_url must not hold a password, which logs would show; give it as api_key")
    return url.rstrip("/")
