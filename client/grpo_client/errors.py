"""Everything that this package raises on purpose.

    GrpoClientError
    ├── ProtocolError (ValueError)          a message does not obey the protocol: which field, and what to do
    │   └── InvalidResponse                 what came back is not an answer of this service
    ├── APIError (RuntimeError)             a server answered with an error status
    │   ├── RequestRefused (ValueError)     400, 413, 415, 422: the request itself cannot succeed
    │   ├── NotAuthorized                   401, 403
    │   ├── NotFound                        404: not a grpo-server, or an older one
    │   ├── Unavailable                     429, 502, 503, 504: perhaps later
    │   └── ServerFailed                    any other: a fault of the server
    ├── FingerprintMismatch (RuntimeError)  another reference answered than the one that was pinned, or two differ
    ├── ConnectionFailed (ConnectionError)  no answer at all: refused, reset, cut off, timed out while reading
    ├── DeadlineExceeded (TimeoutError)     still failing when `max_wait` ran out; the last failure is its __cause__
    └── ClientClosed (RuntimeError)         used after close()

A broken argument that never becomes a message (lists of unequal length, a negative timeout) is a plain ValueError.
"""

from __future__ import annotations


class GrpoClientError(Exception):
    """Base of all: `except GrpoClientError` catches whatever scoring can raise on purpose."""


class ProtocolError(GrpoClientError, ValueError):
    """A message does not obey the protocol.

    message: says what is wrong and what to do. param: the field, as a path ("groups[3].completions[1]"), or None when
    the body as a whole is at fault. code: one short word for programs. status: the HTTP status that a server answers.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str = "invalid_request", status: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class InvalidResponse(ProtocolError):
    """What came back is not an answer of this service: another program listens there, or the versions differ."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param, code="invalid_response", status=502)


class APIError(GrpoClientError, RuntimeError):
    """A server answered with an error status.

    status, code, param: as the server gave them. request_id: what to look for in its log.
    retry_after: seconds that the server asked to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        field = f" (field {self.param})" if self.param else ""
        request = f" [request {self.request_id}]" if self.request_id else ""
        return f"HTTP {self.status}: {self.message}{field}{request}"


class RequestRefused(APIError, ValueError):
    """The request itself cannot succeed, here or later: 400, 413, 415, 422."""


class NotAuthorized(APIError):
    """The API key is missing or wrong (401), or may not do this (403)."""


class NotFound(APIError):
    """The route does not exist there: not a grpo-server, or an older one."""


class Unavailable(APIError):
    """The server cannot answer now: its queue is full (429), it loads or drains (503), or a proxy lost it (502, 504)."""


class ServerFailed(APIError):
    """A fault of the server's own (500) or an answer that makes no sense here. Not retried: it would fail again."""


class FingerprintMismatch(GrpoClientError, RuntimeError):
    """Another reference answered than the pinned one, or the answers of one call came from two references.

    Never retried: the same question would get another model's numbers.
    """


class ConnectionFailed(GrpoClientError, ConnectionError):
    """No answer at all: refused, reset, cut off half way, or nothing came for `timeout` seconds."""


class DeadlineExceeded(GrpoClientError, TimeoutError):
    """Still failing when `max_wait` ran out. The last failure is the `__cause__`."""


class ClientClosed(GrpoClientError, RuntimeError):
    """The client was used after close()."""
