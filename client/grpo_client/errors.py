"""Everything that this package raises on purpose.

    GrpoClientError
    ├── ProtocolError (ValueError)          a message does not obey the protocol: which field, and what to do
    │   └── InvalidResponse                 what came back is not an answer of this service
    ├── APIError (RuntimeError)             a server answered with an error status
    │   ├── RequestRefused (ValueError)     400, 413, 415, 422: the request itself cannot succeed
    │   ├── NotAuthorized                   401, 403
    │   ├── NotFound                        404: not a grpo-server, or an older one
    │   ├── Unavailable                     408, 429, 502, 503, 504: perhaps later
    │   └── ServerFailed                    any other: a fault of the server
    ├── FingerprintMismatch (RuntimeError)  another reference answered than the one that was pinned, or two differ
    ├── ConnectionFailed (ConnectionError)  no answer: refused, reset, cut off, changed on the way, timed out while reading
    ├── InvalidSetting (ValueError)         a client was told something impossible: a URL, a timeout, a key
    ├── DeadlineExceeded (TimeoutError)     still failing when `max_wait` ran out; the last failure is its __cause__
    └── ClientClosed (RuntimeError)         used after close()

All can be pickled, for they cross processes in a worker pool. None ever holds a key.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, Self


class GrpoClientError(Exception):
    """Base of all: `except GrpoClientError` catches whatever scoring can raise on purpose."""

    def __reduce__(self) -> tuple[Callable[..., GrpoClientError], tuple[Any, ...]]:
        return _restored, (type(self), self.args, self.__dict__.copy())

    def also(self, more: str) -> Self:
        """The same error, which says this as well."""
        error = copy(self)
        error.args = (f"{self.args[0]}; {more}", *self.args[1:])
        if "message" in error.__dict__:
            error.__dict__["message"] = error.args[0]
        return error


def _restored(kind: type[GrpoClientError], args: tuple[Any, ...], fields: dict[str, Any]) -> GrpoClientError:
    error = kind.__new__(kind, *args)  # not through __init__, which wants its fields by name
    error.args = args
    error.__dict__.update(fields)
    return error


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
    """What came back is not an answer of this service: another program listens there, or the versions differ.

    request_id: what to look for in a log, where it is known.
    """

    def __init__(self, message: str, param: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message, param, code="invalid_response", status=502)
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message}{_where(None, self.request_id)}"


class APIError(GrpoClientError, RuntimeError):
    """A server answered with an error status.

    status, code, param: as the server gave them. request_id: what to look for in its log.
    retry_after: seconds that the server asked to wait, or None. url: which server it was.
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
        url: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after
        self.url = url

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.message}{_where(self.param, self.request_id)}"


class RequestRefused(APIError, ValueError):
    """The request itself cannot succeed, here or later: 400, 413, 415, 422."""


class NotAuthorized(APIError):
    """The API key is missing or wrong (401), or may not do this (403)."""


class NotFound(APIError):
    """The route does not exist there: not a grpo-server, or an older one."""


class Unavailable(APIError):
    """The server cannot answer now: its queue is full (429), it loads or drains (503), a proxy lost it (502, 504), its
    reference is being replaced, or a file written, by somebody else (409), or the request did not arrive whole (408) or not
    as it was sent (400, digest_mismatch)."""


class ServerFailed(APIError):
    """A fault of the server's own (500) or an answer that makes no sense here. Not retried: it would fail again."""


class FingerprintMismatch(GrpoClientError, RuntimeError):
    """Another reference answered than the pinned one, or the answers of one call came from two references.

    Never retried: the same question would get another model's numbers. status, code, param, request_id: as the server
    gave them with its 409; None where the client itself saw the difference.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message}{_where(self.param, self.request_id)}"


class ConnectionFailed(GrpoClientError, ConnectionError):
    """No answer: refused, reset, cut off half way, changed on the way, or nothing came for `timeout` seconds.

    url: which server was asked. request_id: under which it may have logged what it got.
    """

    def __init__(self, message: str, *, url: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.request_id = request_id


class InvalidSetting(GrpoClientError, ValueError):
    """A client was told something impossible: a URL that is none, a timeout below 0. The message names the argument."""


class DeadlineExceeded(GrpoClientError, TimeoutError):
    """Still failing when `max_wait` ran out. The last failure is the `__cause__`."""


class ClientClosed(GrpoClientError, RuntimeError):
    """The client was used after close()."""


def _where(param: str | None, request_id: str | None) -> str:
    field = f" (field {param})" if param else ""
    return f"{field} [request {request_id}]" if request_id else field
