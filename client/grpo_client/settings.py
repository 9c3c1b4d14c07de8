"""What a client is told, checked once, and what both clients make of it."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, cast, get_args

from grpo_client.addresses import base_of, read_key
from grpo_client.arguments.readers import kind_of
from grpo_client.errors import InvalidSetting
from grpo_client.http.balancer import Balancer
from grpo_client.http.exchange import Encoding
from grpo_client.http.retry import RetryPolicy
from grpo_client.http.tls import TLS
from grpo_client.http.transport import TransportSettings
from grpo_client.version import package_version

API_KEY_VARIABLE = "GRPO_API_KEY"
DEFAULT_TIMEOUT = 300.0
LONGEST_TIMEOUT = 2_000_000  # seconds; a socket counts its milliseconds in 31 bits
DEFAULT_REQUEST_TOKENS = 32_768
DEFAULT_IN_FLIGHT = 4
_SPARE_CONNECTIONS = 4  # for info() and health() beside a full set of scoring requests


class ClientOptions(TypedDict, total=False):
    """Options of `ReferenceClient` and `AsyncReferenceClient`, all optional; both spell them out.

    api_key: sent as a bearer token; else the environment variable GRPO_API_KEY; never shown.
    timeout: seconds without a byte before a try counts as lost (300).
    max_wait: seconds over which a failing request is tried again (900); 0 tries once. See `http.retry`.
    encoding: "tensors" (the default; 4 bytes a figure) or "json" (for proxies and eyes that want it).
    fingerprint: None, "first" (whoever answers first is the one) or the reference's fingerprint. See `core`.
    max_request_tokens: bigger requests are cut into several (32768).
    max_in_flight: requests sent at once (4).
    retry: a whole `RetryPolicy` instead of max_wait.
    tls: certificates to trust and to show; else GRPO_CA_FILE, GRPO_CERT_FILE, GRPO_KEY_FILE. See `http.tls`.
    model: the name of the reference that is asked, where a server hosts several; None: the server's default.
    """

    api_key: str | None
    timeout: float
    max_wait: float | None
    encoding: Encoding
    fingerprint: str | None
    max_request_tokens: int
    max_in_flight: int
    retry: RetryPolicy | None
    tls: TLS | None
    model: str | None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """`ClientOptions` with defaults filled in and checked. key_is_missing: there was a key, and it did not travel here."""

    urls: tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    timeout: float = DEFAULT_TIMEOUT
    encoding: Encoding = "tensors"
    fingerprint: str | None = None
    max_request_tokens: int = DEFAULT_REQUEST_TOKENS
    max_in_flight: int = DEFAULT_IN_FLIGHT
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    tls: TLS = field(default_factory=TLS)
    model: str | None = None
    key_is_missing: bool = field(default=False, repr=False)

    @classmethod
    def of(cls, base_url: str | Sequence[str], options: ClientOptions) -> ClientSettings:
        """Fill in what the options leave out. Raises InvalidSetting that names the argument at fault."""
        given: dict[str, Any] = dict(options)
        max_wait = given.pop("max_wait", None)
        if given.get("retry") is None:
            given["retry"] = RetryPolicy() if max_wait is None else RetryPolicy(max_wait=max_wait)
        elif max_wait is not None:
            raise InvalidSetting("give either max_wait or retry (which has its own max_wait), not both")
        if given.get("tls") is None:
            given["tls"] = TLS.from_environment()
        given["api_key"] = read_key(given.get("api_key") or os.environ.get(API_KEY_VARIABLE))
        return cls(urls=_listed(base_url), **given)

    def at(self, base_url: str | Sequence[str]) -> ClientSettings:
        """The same for other servers, whose reference is whichever answers first."""
        return replace(self, urls=_listed(base_url), fingerprint="first", model=None)

    def __post_init__(self) -> None:
        if not self.urls:
            raise InvalidSetting("base_url is an empty list; give at least one, such as http://localhost:8000")
        if self.encoding not in get_args(Encoding):
            raise InvalidSetting(f"encoding must be 'tensors' or 'json', got {self.encoding!r:.40}")
        for name in ("max_request_tokens", "max_in_flight"):
            count: Any = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise InvalidSetting(f"{name} must be a whole number, 1 or more, got {count!r:.40}")
        timeout: Any = self.timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= LONGEST_TIMEOUT:
            raise InvalidSetting(f"timeout must be above 0 and at most {LONGEST_TIMEOUT} seconds, got {timeout!r:.40}")
        pin: Any = self.fingerprint
        if pin is not None and (not isinstance(pin, str) or not pin):
            raise InvalidSetting('fingerprint must be None, "first" or what GET /v1/reference shows')
        model: Any = self.model
        if model is not None and (not isinstance(model, str) or not model):
            raise InvalidSetting("model must be None or one of the names that GET /v1/models lists")
        retry: Any = self.retry
        if not isinstance(retry, RetryPolicy):
            raise InvalidSetting(f"retry must be a RetryPolicy, got {kind_of(retry)}")
        tls: Any = self.tls
        if not isinstance(tls, TLS):
            raise InvalidSetting(f"tls must be a TLS, got {kind_of(tls)}")

    def check_key(self) -> None:
        """Raises InvalidSetting when this client had a key where it was made, and has none here."""
        if self.key_is_missing:
            raise InvalidSetting(
                f"this client was pickled, and its API key was not: set {API_KEY_VARIABLE} in this process's environment, "
                "or make the client here"
            )

    def to_pickle(self) -> ClientSettings:
        """Without the key, unless a process is being spawned: a pickle may end up in a file, a new process's pipe not."""
        from multiprocessing.context import get_spawning_popen  # only here: it brings sockets and pickling with it

        if self.api_key is None or get_spawning_popen() is not None:
            return self
        return replace(self, api_key=None, key_is_missing=True)

    def unpickled(self) -> ClientSettings:
        """With the key that this process's environment has, where the pickle has none."""
        if not self.key_is_missing or not (key := read_key(os.environ.get(API_KEY_VARIABLE))):
            return self
        return replace(self, api_key=key, key_is_missing=False)

    def pinned(self, fingerprint: str | None) -> ClientSettings:
        """With what is known by now of the reference that must answer."""
        return replace(self, fingerprint=fingerprint or self.fingerprint)

    def transport(self) -> TransportSettings:
        """What the transport needs to know."""
        headers = {"User-Agent": f"grpo-client/{package_version()}"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return TransportSettings(self.timeout, self.max_in_flight + _SPARE_CONNECTIONS, headers, self.tls)

    def balancer(self) -> Balancer:
        """A fresh balancer over the servers, in an order of its own: what belongs to none of them goes, from many clients, to
        different ones."""
        return Balancer(random.sample(self.urls, len(self.urls)), clock=self.retry.clock)


def _listed(base_url: Any) -> tuple[str, ...]:
    if not isinstance(base_url, str | list | tuple):
        raise InvalidSetting(f"base_url must be a URL or a list of URLs, got {kind_of(base_url)}")
    listed: list[Any] = [base_url] if isinstance(base_url, str) else [*cast(Any, base_url)]
    return tuple(base_of(url) for url in listed)


def check_given(**texts: str | None) -> None:
    """Raises InvalidSetting for a text that is empty, by the name of its argument; None was left out."""
    for name, text in texts.items():
        if text is not None and (not isinstance(text, str) or not text):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidSetting(f"{name} must be a text that is not empty, got {text!r:.40}")
