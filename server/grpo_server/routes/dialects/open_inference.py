"""The Open Inference Protocol v2 over HTTP, for KServe, Triton and their clients; tensors as JSON or as binary data.

It is the native message in another container: the inputs and outputs are the tensors of POST /v1/logprobs by the same
names, and what is metadata there is `parameters` here. BYTES tensors (text) are not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from grpo_client.protocol import EXTRA_ARRAYS, PER_ID, ReferenceInfo, ScoreResult
from grpo_client.tracing import span
from grpo_client.validation.limits import Limits
from grpo_client.version import package_version

from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.phase import Phase
from grpo_server.routes._answers import response_of
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to, check_not_hidden, identity_headers
from grpo_server.routes.dialects._infer_message import HEADER_LENGTH, INPUTS, NAMES_OF, decode, encode
from grpo_server.routes.health import readyz
from grpo_server.schemas import OPEN_INFERENCE_ERRORS

# A model's name may hold slashes. The lowest decorator registers first: the route that takes a version goes before the one
# whose {model} would swallow it.
router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=OPEN_INFERENCE_ERRORS)

TWO_DIMENSIONS = PER_ID | {"token_ids"}


@router.get("")
async def server_metadata() -> dict[str, Any]:
    """Which program this is, its release, and the extensions of the protocol that it speaks."""
    return {"name": "grpo-refserver", "version": package_version(), "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """True while the process lives, as `/livez`."""
    return {"live": True}


@router.get("/health/ready")
async def ready(service: ServiceDep) -> JSONResponse:
    """True when requests are taken, as `/readyz`."""
    return await readyz(service)


@router.get("/models/{model:path}/ready")
@router.get("/models/{model:path}/versions/{version}/ready", include_in_schema=False)
async def model_ready(model: str, scoring: ScoringDep, service: ServiceDep, version: str | None = None) -> JSONResponse:
    """True when this model takes requests; 404 for another model's name."""
    _check(version, scoring.hosted(model).info)
    ok = service.phase is Phase.READY
    return JSONResponse({"name": model, "ready": ok}, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)


@router.get("/models/{model:path}")
@router.get("/models/{model:path}/versions/{version}", include_in_schema=False)
async def model_metadata(model: str, scoring: ScoringDep, version: str | None = None) -> dict[str, Any]:
    """Every input and output tensor; `parameters` of a request: normalizer, return, top_k, top_dtype, fingerprint.

    With top_dtype float16 the log-probs of best and asked tokens are FP16, and best ids UINT16 where there are at most 65,536.
    """
    info = scoring.hosted(model).info
    _check(version, info)
    outputs = {"logprobs": "FP32", "status": "UINT8", "completion_mask": "UINT8"} | {
        n: NAMES_OF[np.dtype(d)] for n, d in EXTRA_ARRAYS.items()
    }
    return {
        "name": info.model,
        "versions": [str(info.version)],
        "platform": "grpo-refserver",
        "inputs": _tensors(INPUTS),
        "outputs": _tensors(outputs),
    }


def _tensors(datatypes: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": [-1, -1] if name in TWO_DIMENSIONS else [-1]}
        for name, datatype in datatypes.items()
    ]


@router.post("/models/{model:path}/infer", response_class=Response)
@router.post("/models/{model:path}/versions/{version}/infer", include_in_schema=False, response_class=Response)
async def infer(
    model: str,
    request: Request,
    scoring: ScoringDep,
    service: ServiceDep,
    version: str | None = None,
    header_length: Annotated[int | None, Header(alias=HEADER_LENGTH, ge=0)] = None,
) -> Response:
    """Per-token log-probs; the same inputs, outputs and rules as POST /v1/logprobs in tensors."""
    service.scheduler.door.refuse_if_closed()
    _check(version, scoring.hosted(model).info)
    body = await request.body()

    async def answer() -> Response:
        with span("decode"):
            asked, message = await service.in_codec(decode, body, header_length, _limits(service))
        check_not_hidden(message)

        async def score(hosted: Hosted) -> ScoreResult:
            _check(version, hosted.info)
            return await scoring.score(message, hosted)

        result = await scoring.by_one_reference(score, model)
        with span("encode"):
            content, json_length = await service.in_codec(encode, asked, result)
        headers = identity_headers(result.reference)
        if json_length is None:
            return await response_of(request, content, "application/json", headers)
        headers[HEADER_LENGTH] = str(json_length)
        return await response_of(request, content, "application/octet-stream", headers)

    return await answer_to(request, answer())


def _limits(service: Service) -> Limits:
    return Limits(max_body_bytes=service.config.max_request_bytes, max_completions=service.config.max_completions)


def _check(version: str | None, info: ReferenceInfo) -> None:
    if version is not None and version != str(info.version):
        raise ServiceError(
            ErrorCode.NOT_FOUND,
            f"version {version!r:.40} of {info.model} is not here; version {info.version} is",
            param="version",
        )
