"""Who answers: the native identity, and the list that OpenAI clients ask for first."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from grpo_client.protocol import ROUTE_REFERENCE, ReferenceInfo
from grpo_client.version import package_version
from pydantic import Field

from grpo_server.routes._common import ScoringDep, ServiceDep, identity_headers
from grpo_server.swapping.progress import SwapStatus

router = APIRouter(tags=["reference"])


class HostedReference(ReferenceInfo):
    """Who answers, and how far the one is that will, or how the last change ended; absent where there was none."""

    swap: SwapStatus | None = Field(default=None, exclude_if=lambda value: value is None)


@router.get(ROUTE_REFERENCE)
async def reference(scoring: ScoringDep, service: ServiceDep) -> HostedReference:
    """Model, fingerprint (to pin), version, dtype, mode, limits, what the start-up probe found, the server's release, and
    the swap that is under way or the last one."""
    hosted = scoring.hosted
    identity = hosted.tokenizer_identity
    return HostedReference(
        **hosted.info.model_dump(),
        tokenizer_fingerprint=None if identity is None else identity.fingerprint,
        tokens=None if identity is None else identity.tokens,
        server_version=package_version(),
        swap=service.swaps.status,
    )


@router.get("/v1/models")
async def models(scoring: ScoringDep, service: ServiceDep, response: Response) -> dict[str, Any]:
    """The one model, as OpenAI lists models."""
    info = scoring.hosted.info
    response.headers.update(identity_headers(info))
    model = {
        "id": info.model,
        "object": "model",
        "created": service.started_at,
        "owned_by": "grpo-refserver",
        "root": info.model,
        "max_model_len": info.max_length,
    }
    return {"object": "list", "data": [model]}
