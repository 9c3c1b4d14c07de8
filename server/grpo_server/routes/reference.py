"""Who answers: the native identity, and the list that OpenAI clients ask for first."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from grpo_client.protocol import ROUTE_REFERENCE, ReferenceInfo
from grpo_client.version import package_version

from grpo_server.routes._common import ScoringDep, ServiceDep, identity_headers

router = APIRouter(tags=["reference"])


@router.get(ROUTE_REFERENCE)
async def reference(scoring: ScoringDep) -> ReferenceInfo:
    """Model, fingerprint (to pin), version, dtype, mode, limits, what the start-up probe found, and the server's release."""
    return scoring.hosted.info.model_copy(update={"server_version": package_version()})


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
