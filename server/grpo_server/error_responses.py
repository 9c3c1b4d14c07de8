"""Errors become responses here and nowhere else: OpenAI's error object on every route, whoever refused.

FastAPI's own refusals (unknown path, wrong method, a body that does not validate) are turned into the same shape. The
last resort for what nobody expected is in `middleware.boundary`.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from grpo_client.errors import ProtocolError
from pydantic import ValidationError
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.types import Scope

from grpo_server.errors import ErrorCode, ServiceError, error_body

# Where a handler leaves the error's code in the ASGI scope, for the access log and the metrics.
SCOPE_ERROR_CODE: Final = "grpo_server.error_code"


def response_of(scope: Scope, error: ServiceError) -> JSONResponse:
    """The response that tells a client of this error; noted in the scope."""
    scope[SCOPE_ERROR_CODE] = error.code.code
    return JSONResponse(_in_dialect(scope, error.body()), error.status, error.headers())


def _in_dialect(scope: Scope, body: dict[str, Any]) -> dict[str, Any]:
    """The Open Inference Protocol has a string where OpenAI has an object, and its clients break on an object."""
    is_v2 = get_route_path(scope).startswith("/v2/")
    return {**body["error"], "error": body["error"]["message"]} if is_v2 else body


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(ProtocolError, _protocol_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return response_of(request.scope, error)


async def _protocol_error(request: Request, error: Exception) -> JSONResponse:
    """The contract's own errors come with status, code and field."""
    assert isinstance(error, ProtocolError)
    request.scope[SCOPE_ERROR_CODE] = error.code
    body = error_body(error.message, kind="invalid_request_error", code=error.code, param=error.param)
    return JSONResponse(_in_dialect(request.scope, body), error.status)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """What a pydantic model refused: the first fault, with the path of its field."""
    assert isinstance(error, RequestValidationError | ValidationError)
    return response_of(request.scope, malformed(error.errors()))


def malformed(faults: Any) -> ServiceError:
    """faults: as in `ValidationError.errors()`, at least one."""
    first = faults[0]
    where = [part for part in first["loc"] if part != "body"]
    param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in where).lstrip(".") or None
    more = f" ({len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return ServiceError(
        ErrorCode.MALFORMED,
        f"{param or 'the body'}: {first['msg']}{more}; /docs shows what this route takes",
        param=param,
    )


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Raised by the framework itself, before any route of ours ran."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]  # not of request.url, which a broken Host header breaks
    if error.status_code == 404:
        refusal = ServiceError(ErrorCode.NOT_FOUND, f"there is no {path} here; /docs lists the routes")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        refusal = ServiceError(ErrorCode.METHOD_NOT_ALLOWED, f"{path} does not take {request.method}; use {allowed}")
    else:
        refusal = ServiceError(ErrorCode.MALFORMED, f"{error.detail}; /docs shows what {path} takes")
    response = response_of(request.scope, refusal)
    response.headers.update(error.headers or {})
    return response
