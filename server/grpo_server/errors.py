"""Every way in which the service says no: one code each, mapped once to an HTTP status and an OpenAI error type.

Pure values: nothing here knows HTTP frameworks, so the scheduler may raise them too. How they become a response is in
`error_responses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any


class ErrorCode(Enum):
    """value: (the `code` clients read, HTTP status, the `type` of OpenAI's error object)."""

    MALFORMED = ("malformed_request", 400, "invalid_request_error")
    DIGEST_MISMATCH = ("digest_mismatch", 400, "invalid_request_error")
    MISSING_API_KEY = ("missing_api_key", 401, "authentication_error")
    INVALID_API_KEY = ("invalid_api_key", 401, "authentication_error")
    ADMIN_FORBIDDEN = ("admin_forbidden", 403, "permission_error")
    CROSS_SITE = ("cross_site", 403, "permission_error")
    INSUFFICIENT_SCOPE = ("insufficient_scope", 403, "permission_error")
    SOURCE_FORBIDDEN = ("source_forbidden", 403, "permission_error")
    NOT_FOUND = ("not_found", 404, "not_found_error")
    MODEL_NOT_FOUND = ("model_not_found", 404, "not_found_error")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, "invalid_request_error")
    NOT_ACCEPTABLE = ("not_acceptable", 406, "invalid_request_error")
    REQUEST_TIMEOUT = ("request_timeout", 408, "invalid_request_error")
    FINGERPRINT_MISMATCH = ("fingerprint_mismatch", 409, "conflict_error")
    SWAP_UNDER_WAY = ("swap_under_way", 409, "conflict_error")
    UPLOAD_BUSY = ("upload_busy", 409, "conflict_error")
    UPLOAD_OFFSET = ("upload_offset", 409, "conflict_error")
    NOT_HELD = ("not_held", 409, "conflict_error")
    SWAP_CANCELLED = ("swap_cancelled", 409, "conflict_error")
    BODY_TOO_LARGE = ("body_too_large", 413, "invalid_request_error")
    CONTEXT_LENGTH = ("context_length_exceeded", 413, "invalid_request_error")
    REQUEST_TOO_LARGE = ("request_too_large", 413, "invalid_request_error")
    URI_TOO_LONG = ("uri_too_long", 414, "invalid_request_error")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", 415, "invalid_request_error")
    INVALID_VALUE = ("invalid_value", 422, "invalid_request_error")
    HASH_MISMATCH = ("hash_mismatch", 422, "invalid_request_error")
    MODEL_UNAVAILABLE = ("model_unavailable", 422, "invalid_request_error")
    HEADERS_TOO_LARGE = ("headers_too_large", 431, "invalid_request_error")
    QUEUE_FULL = ("queue_full", 429, "rate_limit_error")
    KEY_RATE_LIMIT = ("key_rate_limit", 429, "rate_limit_error")
    KEY_QUEUE_FULL = ("key_queue_full", 429, "rate_limit_error")
    CLIENT_LEFT = ("client_left", 499, "invalid_request_error")
    INTERNAL = ("internal_error", 500, "server_error")
    ENGINE_FAILED = ("engine_failed", 500, "server_error")
    LOADING = ("loading", 503, "service_unavailable_error")
    SWAPPING = ("swapping", 503, "service_unavailable_error")
    DRAINING = ("draining", 503, "service_unavailable_error")
    REPLICA_LOST = ("replica_lost", 503, "service_unavailable_error")
    LOAD_FAILED = ("load_failed", 503, "service_unavailable_error")
    TOO_MANY_CONNECTIONS = ("too_many_connections", 503, "service_unavailable_error")
    SHELF_FULL = ("shelf_full", 503, "service_unavailable_error")
    SWAP_TIMEOUT = ("swap_timeout", 504, "service_unavailable_error")
    INSUFFICIENT_STORAGE = ("insufficient_storage", 507, "server_error")
    OUT_OF_MEMORY = ("out_of_memory", 503, "service_unavailable_error")

    def __init__(self, code: str, status: int, kind: str) -> None:
        self.code = code
        self.status = status
        self.kind = kind


# Asking again cannot help with these, although clients retry their status by habit (openai-python: 409 and 5xx).
NOT_WORTH_RETRYING = frozenset(
    {
        ErrorCode.FINGERPRINT_MISMATCH,
        ErrorCode.INSUFFICIENT_STORAGE,
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.LOAD_FAILED,
        ErrorCode.NOT_HELD,
        ErrorCode.SWAP_CANCELLED,
        ErrorCode.SWAP_TIMEOUT,
        ErrorCode.UPLOAD_OFFSET,
    }
)


class ServiceError(Exception):
    """A refusal or failure that a client is told about.

    message: what is wrong and what to do about it. param: the field at fault. retry_after: seconds after which asking
    again makes sense, where it does.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Callable[..., ServiceError], tuple[Any, ...]]:
        return _restored, (self.code, self.message, self.param, self.retry_after)

    @property
    def status(self) -> int:
        return self.code.status

    def body(self) -> dict[str, Any]:
        return error_body(self.message, kind=self.code.kind, code=self.code.code, param=self.param)

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds as HTTP has it, and `retry-after-ms` as openai-python reads it first."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
            headers["Retry-After-Ms"] = str(max(1, math.ceil(self.retry_after * 1000)))
        if self.code in NOT_WORTH_RETRYING:
            headers["X-Should-Retry"] = "false"
        if self.code is ErrorCode.REQUEST_TIMEOUT:
            headers["Connection"] = "close"  # what is left of the body must not be taken for the next request
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def _restored(code: ErrorCode, message: str, param: str | None, retry_after: float | None) -> ServiceError:
    return ServiceError(code, message, param=param, retry_after=retry_after)


class DigestMismatch(ServiceError):
    """A body is not the one that its Content-Digest was taken of."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.DIGEST_MISMATCH,
            "the body changed on the way: its bytes are not those of its Content-Digest; send it again",
            param="Content-Digest",
        )


class ReferenceReplaced(ServiceError):
    """Another reference hosts than the one that a request was read for. Asked again, the new one answers it whole."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.SWAPPING,
            "the reference was replaced while the request was under way; send it again",
            retry_after=1.0,
        )


def error_body(message: str, *, kind: str, code: str | None, param: str | None) -> dict[str, Any]:
    """The OpenAI error object, the only shape in which this service reports an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
