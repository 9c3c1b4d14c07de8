"""A refusal as bytes, for who never got as far as the application. The same shape as everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus

from grpo_server.errors import ErrorCode, ServiceError


def response_bytes(error: ServiceError, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """An HTTP/1.1 response after which the connection is closed."""
    body = json.dumps(error.body()).encode()
    headers = {
        **{name.decode(): value.decode() for name, value in default_headers},
        **error.headers(),
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{head}\r\n".encode() + body


def not_http() -> ServiceError:
    return ServiceError(ErrorCode.MALFORMED, "this is no HTTP/1.1 request; is it https, or cut off?")


def head_too_large(limit: int) -> ServiceError:
    return ServiceError(
        ErrorCode.HEADERS_TOO_LARGE,
        f"request line, headers and trailers take more than {limit} bytes (--max-header-bytes); send fewer or shorter ones",
    )


def uri_too_long(limit: int) -> ServiceError:
    return ServiceError(
        ErrorCode.URI_TOO_LONG, f"the path and query are longer than {limit} bytes (--max-header-bytes); use a body"
    )


def too_many_headers(limit: int) -> ServiceError:
    return ServiceError(
        ErrorCode.HEADERS_TOO_LARGE, f"the request has more than {limit} headers (--max-headers); send fewer"
    )


def head_too_slow(seconds: float) -> ServiceError:
    return ServiceError(
        ErrorCode.REQUEST_TIMEOUT,
        f"the headers were not complete after {seconds:g} s (--header-timeout); send the request again",
    )
