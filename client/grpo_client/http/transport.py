"""The connections: httpx, and nothing of what is said over them. The one module that knows which HTTP library it is.

Both transports turn each of the library's failures into one of `errors`; a response of any status is a `Reply`. Nothing of
a failure's own words goes on that might quote a header or a URL.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from grpo_client.content_digest import HEADER, ContentDigest, header_of
from grpo_client.errors import ClientClosed, ConnectionFailed, InvalidResponse, InvalidSetting
from grpo_client.http.exchange import Call, Reply
from grpo_client.http.tls import TLS
from grpo_client.tracing import Span, asking

# What a test or an in-process server may be plugged in as.
BaseTransport = httpx.BaseTransport
AsyncBaseTransport = httpx.AsyncBaseTransport
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """timeout: seconds without a byte before a call counts as lost; connecting gets at most ten of them.

    connections: kept open at most, over all servers. headers: sent with every call. tls: certificates.
    """

    timeout: float
    connections: int
    headers: dict[str, str] = field(repr=False)
    tls: TLS = field(default_factory=TLS)

    def _timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeout, connect=min(10.0, self.timeout))

    def _limits(self) -> httpx.Limits:
        return httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections)

    def sync(self, transport: BaseTransport | None) -> httpx.Client:
        return self._open(
            lambda headers, verify: httpx.Client(
                timeout=self._timeout(),
                limits=self._limits(),
                headers=headers,
                transport=transport,
                verify=verify,
            )
        )

    def asynchronous(self, transport: AsyncBaseTransport | None) -> httpx.AsyncClient:
        return self._open(
            lambda headers, verify: httpx.AsyncClient(
                timeout=self._timeout(),
                limits=self._limits(),
                headers=headers,
                transport=transport,
                verify=verify,
            )
        )

    def _open(self, make: Callable[[httpx.Headers, ssl.SSLContext | bool], Http]) -> Http:
        """Raises InvalidSetting for certificates that cannot be used, and for what the environment asks of every HTTP client
        and cannot be done."""
        verify = self.tls.context(httpx.create_ssl_context) or True
        try:
            return make(httpx.Headers(self.headers, encoding="utf-8"), verify)
        except (
            httpx.InvalidURL,
            ValueError,
            ImportError,
            OSError,
        ) as error:  # a proxy's URL, a missing SOCKS library, ...
            raise InvalidSetting(
                f"no connections can be opened ({type(error).__name__}); look at HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, "
                "NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR in the environment"
            ) from None  # whose words may quote a proxy's password


class SyncTransport:
    """A pool of connections for threads."""

    def __init__(self, settings: TransportSettings, transport: BaseTransport | None = None) -> None:
        self._http = settings.sync(transport)

    def send(self, call: Call, base_url: str) -> Reply:
        """One try. Raises ConnectionFailed when no whole response came, or not the one that was sent."""
        with _failures(self._http, call, base_url), _traced(call, base_url) as (span, headers):
            response = self._http.send(_request(self._http, call, base_url, headers), stream=True)
            body, digest = bytearray(), ContentDigest()
            try:
                for chunk in response.iter_bytes():
                    body += chunk
                    digest.add(chunk)
            finally:
                response.close()
            span.answered(response.status_code, error_from=400)
            return _reply(call, response, body, digest)

    def close(self) -> None:
        self._http.close()


class AsyncTransport:
    """A pool of connections for one event loop."""

    def __init__(self, settings: TransportSettings, transport: AsyncBaseTransport | None = None) -> None:
        self._http = settings.asynchronous(transport)

    async def send(self, call: Call, base_url: str) -> Reply:
        """One try. Raises ConnectionFailed when no whole response came, or not the one that was sent."""
        with _failures(self._http, call, base_url), _traced(call, base_url) as (span, headers):
            response = await self._http.send(_request(self._http, call, base_url, headers), stream=True)
            body, digest = bytearray(), ContentDigest()
            try:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    digest.add(chunk)
            finally:
                await response.aclose()
            span.answered(response.status_code, error_from=400)
            return _reply(call, response, body, digest)

    async def aclose(self) -> None:
        await self._http.aclose()


def _traced(call: Call, base_url: str) -> AbstractContextManager[tuple[Span, dict[str, str]]]:
    return asking(call.method, call.path, base_url, call.request_id)


def _request(
    http: httpx.Client | httpx.AsyncClient, call: Call, base_url: str, trace: Mapping[str, str]
) -> httpx.Request:
    headers = {**call.headers, **trace, "X-Request-Id": call.request_id}
    if call.body:
        headers[HEADER] = header_of([call.body])
    return http.build_request(call.method, base_url + call.path, content=call.body, headers=headers)


def _reply(call: Call, response: httpx.Response, body: bytearray, digest: ContentDigest) -> Reply:
    """body: of this reply alone, so that arrays which are views into it may be written to. digest: of it, as our servers
    take it; a proxy may have packed it since. Raises ConnectionFailed when it is not what was sent."""
    if not digest.fits(response.headers.get(HEADER)):
        raise ConnectionFailed(
            f"{response.url}: the answer changed on the way: its bytes are not those of its {HEADER}",
            url=str(response.url),
            request_id=call.request_id,
        )
    return Reply(response.status_code, response.headers, body, str(response.url), call.request_id)


@contextmanager
def _failures(http: httpx.Client | httpx.AsyncClient, call: Call, base_url: str) -> Generator[None]:
    try:
        yield
    except (httpx.DecodingError, httpx.TooManyRedirects, httpx.CookieConflict) as error:
        what = (
            "its Content-Encoding cannot be undone" if isinstance(error, httpx.DecodingError) else type(error).__name__
        )
        raise InvalidResponse(
            f"{base_url} sent no answer of a grpo-server: {what}", request_id=call.request_id
        ) from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidSetting(f"base_url {base_url} cannot be used: {type(error).__name__}") from None
    except httpx.LocalProtocolError as error:  # which quotes the header that it did not like
        raise _failed(base_url, call, type(error).__name__) from None
    except (httpx.HTTPError, httpx.StreamError) as error:
        if http.is_closed:
            raise ClientClosed("the client was closed while it waited for an answer") from error
        raise _failed(base_url, call, f"{type(error).__name__}: {error or 'no further word'}") from error
    except RuntimeError as error:
        if not http.is_closed:
            raise
        raise ClientClosed("this client is closed; build a new one") from error


def _failed(base_url: str, call: Call, words: str) -> ConnectionFailed:
    return ConnectionFailed(f"{base_url}: {words}", url=base_url, request_id=call.request_id)
