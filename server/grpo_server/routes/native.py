"""POST /v1/logprobs: the native message, in JSON or safetensors, each either way."""

from __future__ import annotations

from types import ModuleType

from fastapi import APIRouter, Request, Response
from grpo_client import wire_json, wire_tensors
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS, ROUTE_LOGPROBS, ScoreResult
from grpo_client.tracing import span
from grpo_client.validation.limits import Limits

from grpo_server.routes._answers import gathered, response_of
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to, check_not_hidden, identity_headers
from grpo_server.routes._negotiation import media_of, preferred
from grpo_server.schemas import LogprobsRequest, LogprobsResponse

router = APIRouter(tags=["scoring"])

# Bytes that are decoded in less time than it takes to hand them to a thread and back.
SMALL_BODY = 8192
WIRES: dict[str, ModuleType] = {MEDIA_JSON: wire_json, MEDIA_TENSORS: wire_tensors}

_TENSORS = {
    "schema": {"type": "string", "format": "binary"},
    "x-tensors": {
        "prompt_ids": "int32 (sum of prompt_lengths,)",
        "prompt_lengths": "int32 (K,)",
        "completion_ids": "int32 (N,)",
        "completion_lengths": "int32 (S,)",
        "group_sizes": "int32 (K,): completions per group",
        "temperature": "float32 (K,), optional",
        "token_ids": "int32 (N, k), optional",
        "completion_mask": "uint8 (N,), optional: 0 where nothing is asked",
        "metadata": "normalizer, return (names with commas between), top_k, top_dtype, fingerprint: optional strings",
    },
}


@router.post(
    ROUTE_LOGPROBS,
    response_class=Response,
    responses={
        200: {
            "model": LogprobsResponse,
            "description": "Scores in the caller's order, as JSON or as tensors (logprobs float32 (N,), status uint8 (S,), "
            "and each extra; reference and usage as JSON in the metadata).",
            "content": {MEDIA_TENSORS: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                MEDIA_JSON: {"schema": {"$ref": f"#/components/schemas/{LogprobsRequest.__name__}"}},
                MEDIA_TENSORS: _TENSORS,
            },
        }
    },
)
async def logprobs(request: Request, scoring: ScoringDep, service: ServiceDep) -> Response:
    """Per-token log-probs of completions given their prompts.

    Content-Type says what you send, Accept what you want back (the same, unless it says otherwise).
    """
    media_in = media_of(request.headers.get("content-type"))
    media_out = preferred(request.headers.get("accept"), default=media_in)
    service.scheduler.door.refuse_if_closed()  # before megabytes are read and parsed for nothing
    body = await request.body()

    async def answer() -> Response:
        limits = Limits(max_body_bytes=service.config.max_request_bytes, max_completions=service.config.max_completions)
        decode = WIRES[media_in].decode_request
        with span("decode"):
            message = decode(body, limits) if len(body) <= SMALL_BODY else await service.in_codec(decode, body, limits)
        if media_out != MEDIA_TENSORS:
            check_not_hidden(message)
        result: ScoreResult = await scoring.score(message)
        with span("encode"):
            chunks = await service.in_codec(lambda: gathered(WIRES[media_out].result_chunks(result)))
        return await response_of(request, chunks, media_out, identity_headers(result.reference))

    return await answer_to(request, answer())
