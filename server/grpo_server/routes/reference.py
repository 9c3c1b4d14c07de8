"""Who answers: the native identity, and the list that OpenAI clients ask for first."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from grpo_client.protocol import ROUTE_REFERENCE, ROUTE_REFERENCES, ReferenceInfo
from grpo_client.version import package_version
from pydantic import BaseModel, Field

from grpo_server.lifecycle import Service
from grpo_server.routes._common import ServiceDep, identity_headers
from grpo_server.swapping.house import House
from grpo_server.swapping.progress import SwapStatus

router = APIRouter(tags=["reference"])

WhichModel = Annotated[str | None, Query(description="Which reference; the default one.")]


class HostedReference(ReferenceInfo):
    """Who answers, and how far the one is that will, or how the last change ended; absent where there was none. base: of an
    adapter, the name of the reference that it is laid on; absent where it is none."""

    base: str | None = Field(default=None, exclude_if=lambda value: value is None)
    swap: SwapStatus | None = Field(default=None, exclude_if=lambda value: value is None)


class HostedReferences(BaseModel):
    references: list[HostedReference]


@router.get(ROUTE_REFERENCE)
async def reference(service: ServiceDep, model: WhichModel = None) -> HostedReference:
    """Model, fingerprint (to pin), version, dtype, mode, limits, what the start-up probe found, the server's release, and
    the swap that is under way or the last one. model: which reference; without it the one that answers who names none."""
    references = service.references
    house = references.named(model)
    # of the default one everything that goes on: who asked for a load knows its name only when it is there
    swap = service.swaps.status if house.default and model is None else service.swaps.status_of(house)
    return _described(service, house, swap)


@router.get(ROUTE_REFERENCES)
async def references(service: ServiceDep) -> HostedReferences:
    """All of them, as `/v1/reference` describes each, the one that answers who names none first."""
    houses = list(service.references)
    return HostedReferences(references=[_described(service, house, service.swaps.status_of(house)) for house in houses])


@router.get("/v1/models")
async def models(service: ServiceDep, response: Response) -> dict[str, Any]:
    """The references as OpenAI lists models. The headers are of the one that answers who names none."""
    houses = list(service.references)
    response.headers.update(identity_headers(houses[0].engine.info))
    return {"object": "list", "data": [_model(service, house) for house in houses]}


@router.get("/v1/models/{model:path}")
async def one_model(model: str, service: ServiceDep, response: Response) -> dict[str, Any]:
    """One of them; 404 for a name that is not here."""
    house = service.references.named(model)
    response.headers.update(identity_headers(house.engine.info))
    return _model(service, house)


def _described(service: Service, house: House, swap: SwapStatus | None) -> HostedReference:
    hosted, base = house.engine.hosted, house.named.base
    identity = hosted.tokenizer_identity
    return HostedReference(
        **hosted.info.model_dump(),
        tokenizer_fingerprint=None if identity is None else identity.fingerprint,
        tokens=None if identity is None else identity.tokens,
        server_version=package_version(),
        base=service.references.default.name if base == "" else base,
        swap=swap,
    )


def _model(service: Service, house: House) -> dict[str, Any]:
    return {
        "id": house.name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "grpo-refserver",
        "root": house.name,
        "max_model_len": house.engine.info.max_length,
    }
