"""The Open Inference Protocol v2 over HTTP, for KServe, Triton and their clients; tensors as JSON or as binary data.

It is the native message in another container: the inputs and outputs are the tensors of POST /v1/logprobs by the same
names, and what is metadata there is `parameters` here. BYTES tensors (text) and compressed bodies are not taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from grpo_client import wire_tensors
from grpo_client.protocol import EXTRA_ARRAYS, ReferenceInfo, ScoreRequest, ScoreResult
from grpo_client.validation import Limits
from grpo_client.wire_tensors.container import write_container
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json

from grpo_server.engine.work import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to, identity_headers
from grpo_server.routes._refusals import check_model
from grpo_server.routes.health import readyz
from grpo_server.schemas import OPEN_INFERENCE_ERRORS
from grpo_server.service import Phase, Service

# A model's name may hold slashes. The lowest decorator registers first: the route that takes a version goes before the one
# whose {model} would swallow it.
router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=OPEN_INFERENCE_ERRORS)

HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "UINT8": "u1"}
NAMES_OF = {np.dtype(code): name for name, code in DATATYPES.items()}
INPUTS = {
    "prompt_ids": "INT32",
    "prompt_lengths": "INT32",
    "completion_ids": "INT32",
    "completion_lengths": "INT32",
    "group_sizes": "INT32",
    "temperature": "FP32",
    "token_ids": "INT32",
}
TWO_DIMENSIONS = frozenset({"token_ids", "top_ids", "top_logprobs", "token_logprobs"})
SETTINGS = ("normalizer", "return", "top_k", "fingerprint")


class TensorParameters(BaseModel):
    model_config = ConfigDict(extra="ignore")

    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    binary_data: bool | None = None


class InputTensor(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: Literal["INT32", "INT64", "FP32", "UINT8"]
    data: list[Any] | None = None
    parameters: TensorParameters = TensorParameters()


class WantedTensor(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: TensorParameters = TensorParameters()


class InferRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    inputs: list[InputTensor]
    outputs: list[WantedTensor] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


_INFER = TypeAdapter(InferRequest)


@router.get("")
async def server_metadata() -> dict[str, Any]:
    return {"name": "grpo-refserver", "version": "1", "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready")
async def ready(service: ServiceDep) -> JSONResponse:
    return await readyz(service)


@router.get("/models/{model:path}/ready")
@router.get("/models/{model:path}/versions/{version}/ready", include_in_schema=False)
async def model_ready(model: str, scoring: ScoringDep, service: ServiceDep, version: str | None = None) -> JSONResponse:
    _check(model, version, scoring.hosted.info)
    ok = service.phase is Phase.READY
    return JSONResponse({"name": model, "ready": ok}, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)


@router.get("/models/{model:path}")
@router.get("/models/{model:path}/versions/{version}", include_in_schema=False)
async def model_metadata(model: str, scoring: ScoringDep, version: str | None = None) -> dict[str, Any]:
    """Every input and output tensor; `parameters` of a request: normalizer, return, top_k, fingerprint."""
    info = scoring.hosted.info
    _check(model, version, info)
    outputs = {"logprobs": "FP32", "status": "UINT8"} | {n: NAMES_OF[np.dtype(d)] for n, d in EXTRA_ARRAYS.items()}
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
    _check(model, version, scoring.hosted.info)
    body = await request.body()

    async def answer() -> Response:
        asked, message = await service.in_codec(_decode, body, header_length, _limits(service))

        async def score(hosted: Hosted) -> ScoreResult:
            _check(model, version, hosted.info)
            return await scoring.score(message, hosted)

        result = await scoring.by_one_reference(score)
        content, json_length = await service.in_codec(_encode, asked, result)
        headers = identity_headers(result.reference)
        if json_length is None:
            return Response(content, media_type="application/json", headers=headers)
        headers[HEADER_LENGTH] = str(json_length)
        return Response(content, media_type="application/octet-stream", headers=headers)

    return await answer_to(request, answer())


def _limits(service: Service) -> Limits:
    return Limits(max_body_bytes=service.config.max_request_bytes, max_completions=service.config.max_completions)


def _check(model: str, version: str | None, info: ReferenceInfo) -> None:
    check_model(model, info)
    if version is not None and version != str(info.version):
        raise ServiceError(
            ErrorCode.NOT_FOUND,
            f"version {version!r:.40} of {info.model} is not here; version {info.version} is",
            param="version",
        )


def _decode(body: bytes, header_length: int | None, limits: Limits) -> tuple[InferRequest, ScoreRequest]:
    """The request as JSON, and what it asks, through the native message's own checks."""
    if header_length is not None and header_length > len(body):
        raise _wrong(HEADER_LENGTH, f"is {header_length} and the body has {len(body)} bytes; is it cut off?")
    asked = _INFER.validate_json(body if header_length is None else body[:header_length])
    raw = memoryview(body)[len(body) if header_length is None else header_length :]
    arrays: dict[str, npt.NDArray[Any]] = {}
    for i, tensor in enumerate(asked.inputs):
        if tensor.name in arrays:
            raise _wrong(f"inputs[{i}]", f"is a second {tensor.name!r:.60}")
        size = tensor.parameters.binary_data_size
        if size is not None and size > len(raw):
            raise _wrong(f"inputs[{i}].parameters.binary_data_size", f"is {size} and {len(raw)} bytes are left")
        arrays[tensor.name] = _array(tensor, None if size is None else raw[:size], f"inputs[{i}]")
        raw = raw[size or 0 :]
    if len(raw):
        raise _wrong(HEADER_LENGTH, f"leaves {len(raw)} bytes behind the last tensor that no input claims")
    settings = {name: str(asked.parameters[name]) for name in SETTINGS if asked.parameters.get(name) is not None}
    return asked, wire_tensors.decode_request(write_container(arrays, settings), limits)


def _array(tensor: InputTensor, raw: memoryview | None, param: str) -> npt.NDArray[Any]:
    dtype = np.dtype(DATATYPES[tensor.datatype])
    try:
        if raw is not None:
            values = np.frombuffer(raw, dtype).reshape(tensor.shape)
        elif tensor.data is not None:
            values = np.array(tensor.data, dtype).reshape(tensor.shape)
        else:
            raise _wrong(param, "has neither data nor parameters.binary_data_size")
    except (ValueError, TypeError, OverflowError) as error:
        raise _wrong(param, f"does not hold {tensor.datatype} values of shape {tensor.shape}: {error}") from error
    if tensor.datatype != "INT64":
        return values
    narrow = values.astype(np.int32)
    if (narrow != values).any():
        raise _wrong(param, "holds a value that does not fit into INT32")
    return narrow


def _encode(asked: InferRequest, result: ScoreResult) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part when tensors follow it."""
    arrays: dict[str, npt.NDArray[Any]] = {"logprobs": result.logprobs, "status": result.status, **result.extras}
    as_binary = bool(asked.parameters.get("binary_data_output", False))
    wanted = asked.outputs or [WantedTensor(name=name) for name in arrays]
    buffers: list[bytes] = []
    outputs: list[dict[str, Any]] = []
    for i, tensor in enumerate(wanted):
        if tensor.name not in arrays:
            raise _wrong(
                f"outputs[{i}]", f"is {tensor.name!r:.60}; this answer has {', '.join(arrays)}; see parameters.return"
            )
        values = arrays[tensor.name]
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": NAMES_OF[values.dtype],
            "shape": list(values.shape),
        }
        if tensor.parameters.binary_data if tensor.parameters.binary_data is not None else as_binary:
            buffers.append(values.astype(DATATYPES[output["datatype"]], copy=False).tobytes())
            output["parameters"] = {"binary_data_size": len(buffers[-1])}
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    info = result.reference
    answer = {
        "model_name": info.model,
        "model_version": str(info.version),
        "id": asked.id,
        "parameters": {"fingerprint": info.fingerprint, "normalizer": result.normalizer},
        "outputs": outputs,
    }
    header = to_json({k: v for k, v in answer.items() if v is not None}, inf_nan_mode="null")
    return b"".join([header, *buffers]), len(header) if buffers else None


def _wrong(param: str, what: str, code: ErrorCode = ErrorCode.MALFORMED) -> ServiceError:
    return ServiceError(code, f"{param} {what}", param=param)
