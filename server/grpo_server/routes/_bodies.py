"""JSON in and out: parsed, checked and written off the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Request, Response
from grpo_client import wire_json
from grpo_client.errors import ProtocolError
from grpo_client.protocol import MEDIA_JSON, IntArray, ReferenceInfo
from grpo_client.tracing import span
from grpo_client.validation.request import MAX_INT32
from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from grpo_server.error_responses import malformed
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.routes._answers import gathered, response_of
from grpo_server.routes._common import identity_headers

Model = TypeVar("Model", bound=BaseModel)

# Whole numbers only: pydantic would otherwise read "5", 5.0 and true as ids, too.
TokenId = Annotated[int, Field(strict=True, ge=0, le=MAX_INT32)]
# The same, or -1 where a row is filled up.
PaddedId = Annotated[int, Field(strict=True, ge=-1, le=MAX_INT32)]
# Long lists of numbers that are no ids, one a prompt.
MOST_NUMBERS = 2**18


def _vector(value: Any, validate: ValidatorFunctionWrapHandler) -> IntArray:
    """(n,) int32 of a list, or of the array that `wire_json.read_json` makes of a long one."""
    if not isinstance(value, np.ndarray):
        return np.array(validate(value), dtype=np.int32)
    for end in (value.min(), value.max()):
        validate([int(end)])
    return value.astype(np.int32)


def _plain(value: Any) -> Any:
    return value[:MOST_NUMBERS].tolist() if isinstance(value, np.ndarray) else value


# Ids of one sequence. Validated list by list, so that no body keeps Python's lock for long; int32 arrays afterwards.
Ids = Annotated[list[TokenId], Field(fail_fast=True), WrapValidator(_vector)]
PaddedIds = Annotated[list[PaddedId], Field(fail_fast=True), WrapValidator(_vector)]
Numbers = Annotated[list[int], Field(fail_fast=True), BeforeValidator(_plain)]


def form_of(value: Any) -> str:
    """Which form of a prompt this is, so that an error speaks of that form alone: text, texts, ids or sequences."""
    if isinstance(value, np.ndarray):
        return "ids"
    if isinstance(value, list):
        first = value[0] if value else 0
        return "texts" if isinstance(first, str) else "sequences" if isinstance(first, list | np.ndarray) else "ids"
    return "text"


def _form_of_ids(value: Any) -> str:
    return "sequences" if form_of(value) == "sequences" else "ids"


# Ids of one sequence, or of several.
IdLists = Annotated[
    Annotated[Ids, Tag("ids")] | Annotated[list[Ids], Field(fail_fast=True), Tag("sequences")],
    Discriminator(_form_of_ids),
]
# The same, or text.
Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(fail_fast=True), Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], Field(fail_fast=True), Tag("sequences")],
    Discriminator(form_of),
]


async def read_json(request: Request, service: Service, model: type[Model]) -> Model:
    """The body as a checked value. Raises ServiceError and ProtocolError (400, 413), and ServiceError (503) while closed."""
    service.scheduler.door.refuse_if_closed()  # before megabytes are read and parsed for nothing
    body = await request.body()
    with span("decode"):
        return await service.in_codec(parse, model, body)


def parse(model: type[Model], body: bytes) -> Model:
    """Not on the event loop. Raises ServiceError and ProtocolError (400, 413)."""
    try:
        value = wire_json.read_json(body)
    except ProtocolError as error:
        if error.code != "malformed_json":
            raise
        raise ServiceError(ErrorCode.MALFORMED, f"{error.message}; /docs shows what this route takes") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:  # here, since listing the faults takes its time as well
        raise malformed(error.errors(include_url=False, include_context=False, include_input=False)) from None


async def json_response(request: Request, service: Service, who: ReferenceInfo, build: Callable[[], Any]) -> Response:
    """What `build` returns, as JSON: see `wire_json.json_chunks`, which takes large lists as iterators. who: computed it."""
    with span("encode"):
        chunks = await service.in_codec(lambda: gathered(wire_json.json_chunks(build())))
    return await response_of(request, chunks, MEDIA_JSON, identity_headers(who))


def described(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body with `read_json`: the schema, with all its parts in one place."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})
    return {"requestBody": {"required": True, "content": {MEDIA_JSON: {"schema": _inlined(schema, parts)}}}}


def _inlined(node: Any, parts: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(parts[node["$ref"].rpartition("/")[2]], parts)
        return {key: _inlined(value, parts) for key, value in node.items()}
    return [_inlined(value, parts) for value in node] if isinstance(node, list) else node


def id_array(ids: Sequence[int]) -> IntArray:
    """Checked ids (see `TokenId`) as a vector."""
    return np.asarray(ids, dtype=np.int32)
