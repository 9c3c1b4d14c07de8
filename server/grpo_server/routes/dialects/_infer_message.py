"""The infer message of the Open Inference Protocol: JSON, with its tensors inside or as binary data behind it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from grpo_client import wire_tensors
from grpo_client.masking import asked_rows
from grpo_client.protocol import ScoreRequest, ScoreResult
from grpo_client.validation.limits import Limits
from grpo_client.wire_json import json_chunks
from grpo_client.wire_tensors.result import narrow
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._answers import CHUNK, Chunk, gathered
from grpo_server.routes._bodies import parse
from grpo_server.routes.dialects._sampling import null_means

HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP16": "<f2", "UINT8": "u1", "UINT16": "<u2", "BOOL": "?"}
NAMES_OF = {np.dtype(code): name for name, code in DATATYPES.items()}
INPUTS = {
    "prompt_ids": "INT32",
    "prompt_lengths": "INT32",
    "completion_ids": "INT32",
    "completion_lengths": "INT32",
    "group_sizes": "INT32",
    "temperature": "FP32",
    "token_ids": "INT32",
    "completion_mask": "UINT8",
}
SETTINGS = ("normalizer", "return", "top_k", "top_dtype", "fingerprint")
# Of the protocol and its extensions; none of them says anything about what is asked.
OTHER_PARAMETERS = frozenset(
    {"binary_data_output", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "headers"}
)


class TensorParameters(BaseModel):
    model_config = ConfigDict(extra="ignore")

    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    binary_data: bool | None = None
    classification: Any = None
    shared_memory_region: Any = None


def _data(value: Any) -> Any:
    """A list, or the array that a long one of whole numbers was read as."""
    if value is not None and not isinstance(value, list | np.ndarray):
        raise ValueError("must be a list")
    return value


class InputTensor(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: Literal["INT32", "INT64", "FP32", "UINT8", "BOOL"]
    data: Annotated[list[Any] | None, PlainValidator(_data)] = None
    parameters: Annotated[TensorParameters, null_means({})] = TensorParameters()


class WantedTensor(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: Annotated[TensorParameters, null_means({})] = TensorParameters()


class InferRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    inputs: list[InputTensor]
    outputs: list[WantedTensor] | None = None
    parameters: Annotated[dict[str, Any], null_means({})] = Field(default_factory=dict)


def decode(body: bytes, header_length: int | None, limits: Limits) -> tuple[InferRequest, ScoreRequest]:
    """The request as JSON, and what it asks, through the native message's own checks."""
    if header_length is not None and header_length > len(body):
        raise wrong(HEADER_LENGTH, f"is {header_length} and the body has {len(body)} bytes; is it cut off?")
    asked = parse(InferRequest, body if header_length is None else body[:header_length])
    raw = memoryview(body)[len(body) if header_length is None else header_length :]
    arrays: dict[str, npt.NDArray[Any]] = {}
    for i, tensor in enumerate(asked.inputs):
        if tensor.name in arrays:
            raise wrong(f"inputs[{i}]", f"is a second {tensor.name!r:.60}")
        size = tensor.parameters.binary_data_size
        if size is not None and size > len(raw):
            raise wrong(f"inputs[{i}].parameters.binary_data_size", f"is {size} and {len(raw)} bytes are left")
        arrays[tensor.name] = _array(tensor, None if size is None else raw[:size], f"inputs[{i}]")
        raw = raw[size or 0 :]
    if len(raw):
        raise wrong(HEADER_LENGTH, f"leaves {len(raw)} bytes behind the last tensor that no input claims")
    _check_parameters(asked)
    settings = {name: str(asked.parameters[name]) for name in SETTINGS if asked.parameters.get(name) is not None}
    return asked, wire_tensors.request_of_arrays(arrays, settings, limits)


def _check_parameters(asked: InferRequest) -> None:
    """Raises ServiceError (400) for a parameter that nothing here would heed."""
    for name, value in asked.parameters.items():
        if value is not None and name not in SETTINGS and name not in OTHER_PARAMETERS:
            how = "send it as an input tensor" if name in INPUTS else f"there are {', '.join(SETTINGS)}"
            raise wrong(f"parameters.{name}"[:80], f"is no parameter of this model; {how}")
    for kind, tensors in (("inputs", asked.inputs), ("outputs", asked.outputs or [])):
        for i, tensor in enumerate(tensors):
            for name in ("classification", "shared_memory_region"):
                if getattr(tensor.parameters, name):
                    raise wrong(f"{kind}[{i}].parameters.{name}", "is not done here; leave it out")


def _array(tensor: InputTensor, raw: memoryview | None, param: str) -> npt.NDArray[Any]:
    dtype = np.dtype(DATATYPES[tensor.datatype])
    try:
        if raw is not None:
            values = np.frombuffer(raw, dtype).reshape(tensor.shape)
        elif tensor.data is not None:
            values = np.array(tensor.data, dtype).reshape(tensor.shape)
        else:
            raise wrong(param, "has neither data nor parameters.binary_data_size")
    except (ValueError, TypeError, OverflowError) as error:
        raise wrong(param, f"does not hold {tensor.datatype} values of shape {tensor.shape}: {error}") from error
    if tensor.datatype == "BOOL":
        return values.view(np.uint8)
    if tensor.datatype != "INT64":
        return values
    narrow = values.astype(np.int32)
    if (narrow != values).any():
        raise wrong(param, "holds a value that does not fit into INT32")
    return narrow


def encode(asked: InferRequest, result: ScoreResult) -> tuple[list[Chunk], int | None]:
    """The body in chunks, and the length of its JSON part when tensors follow it."""
    arrays: dict[str, npt.NDArray[Any]] = {"logprobs": result.logprobs, "status": result.status}
    arrays |= narrow(asked_rows(result.extras, result.completion_mask), result.reference.vocab_size)
    if result.completion_mask is not None:
        arrays["completion_mask"] = result.completion_mask.view(np.uint8)
    as_binary = bool(asked.parameters.get("binary_data_output", False))
    wanted = asked.outputs or [WantedTensor(name=name) for name in arrays]
    binary: list[npt.NDArray[np.uint8]] = []
    outputs: list[dict[str, Any]] = []
    for i, tensor in enumerate(wanted):
        if tensor.name not in arrays:
            raise wrong(
                f"outputs[{i}]", f"is {tensor.name!r:.60}; this answer has {', '.join(arrays)}; see parameters.return"
            )
        values = arrays[tensor.name]
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": NAMES_OF[values.dtype],
            "shape": list(values.shape),
        }
        if tensor.parameters.binary_data if tensor.parameters.binary_data is not None else as_binary:
            data = np.ascontiguousarray(values, DATATYPES[output["datatype"]]).reshape(-1).view(np.uint8)
            binary.append(data)
            output["parameters"] = {"binary_data_size": len(data)}
        else:
            output["data"] = values.ravel().astype(np.float64 if values.dtype.kind == "f" else values.dtype)
        outputs.append(output)
    info = result.reference
    answer = {
        "model_name": info.model,
        "model_version": str(info.version),
        "id": asked.id,
        "parameters": {"fingerprint": info.fingerprint, "normalizer": result.normalizer},
        "outputs": iter(outputs),
    }
    header = gathered(json_chunks({k: v for k, v in answer.items() if v is not None}))
    buffers = [data.data[start : start + CHUNK] for data in binary for start in range(0, len(data), CHUNK)]
    return gathered([*header, *buffers]), sum(map(len, header)) if binary else None


def wrong(param: str, what: str, code: ErrorCode = ErrorCode.MALFORMED) -> ServiceError:
    return ServiceError(code, f"{param} {what}", param=param)
