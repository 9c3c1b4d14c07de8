"""Changing the reference while it serves. Needs the admin key; `auth` sees to that.

Accepted requests are answered by the reference that accepted them, and those that arrive meanwhile too.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from grpo_client.protocol import ReferenceInfo
from pydantic import BaseModel, ConfigDict, Field

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.routes._bodies import described, read_json
from grpo_server.routes._common import ServiceDep
from grpo_server.swapping.progress import SwapStatus
from grpo_server.swapping.wish import Wish

router = APIRouter(prefix="/admin", tags=["admin"])

VERSION = "That the new reference gets, later than the hosted one's; null: the next."
WhoseSwap = Annotated[str | None, Query(description="Name of a reference: end it only if it is of this one.")]
HOLD = (
    "true: bring it up beside the hosted one and answer with it when it is there; it serves at /admin/reference/commit."
)


class SwapRequest(BaseModel):
    """Host another model."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, description="Directory, .gguf file, hub id, or demo.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    version: int | None = Field(None, description=VERSION)
    hold: bool = Field(False, description=HOLD)
    reference: str | None = Field(None, description="Name of the reference that is replaced; the default one.")
    wait: bool = Field(True, description="false: answer 202 at once; /v1/reference says how far it is.")


class MixRequest(BaseModel):
    """weights = decay * weights + (1 - decay) * those of `model`."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, description="A checkpoint of the same architecture.")
    decay: float = Field(ge=0, le=1, allow_inf_nan=False, description="Share of the old weights that stays.")
    version: int | None = Field(None, description=VERSION)
    hold: bool = Field(False, description=HOLD)
    reference: str | None = Field(None, description="Name of the reference that is moved; the default one.")
    wait: bool = Field(True, description="false: answer 202 at once; /v1/reference says how far it is.")


class CommitRequest(BaseModel):
    """Let the reference serve that was brought up with `hold`."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(description="Of the reference that is held.")
    reference: str | None = Field(None, description="Its name; the default one.")


@router.post("/reference", openapi_extra=described(SwapRequest), response_model=ReferenceInfo | SwapStatus)
async def swap(request: Request, response: Response, service: ServiceDep) -> ReferenceInfo | SwapStatus:
    """Replace the reference; version + 1. If it cannot be loaded (422) or not in time (504), the old one serves on."""
    change = await read_json(request, service, SwapRequest)
    wish = Wish(change.model, change.revision, None, change.reference, change.version, hold=change.hold)
    return await _replace(service, wish, response, wait=change.wait)


@router.post("/reference/ema", openapi_extra=described(MixRequest), response_model=ReferenceInfo | SwapStatus)
async def mix(request: Request, response: Response, service: ServiceDep) -> ReferenceInfo | SwapStatus:
    """Move the reference towards a checkpoint; version + 1. If that does not fit (422), the old one serves on."""
    change = await read_json(request, service, MixRequest)
    wish = Wish(change.model, None, change.decay, change.reference, change.version, hold=change.hold)
    return await _replace(service, wish, response, wait=change.wait)


@router.post("/reference/commit", openapi_extra=described(CommitRequest))
async def commit(request: Request, service: ServiceDep) -> ReferenceInfo:
    """Let what is held serve, on one of several servers that change together; may be said again. 409 where it is not held."""
    asked = await read_json(request, service, CommitRequest)
    return await service.swaps.commit(asked.version, asked.reference)


@router.delete("/reference")
async def cancel(service: ServiceDep, reference: WhoseSwap = None) -> SwapStatus | None:
    """End the swap, mix or load that is under way; all is as it was. 404 where there is none, or it is done."""
    if service.together is not None:
        service.references.named(reference, "reference")
        await service.together.cancel()
        return service.swaps.status
    ended = ServiceError(
        ErrorCode.SWAP_CANCELLED, "the swap was ended by DELETE /admin/reference; the old reference serves on"
    )
    if not service.swaps.cancel(ended, reference) or service.swaps.status is None:
        of = "" if reference is None else f" of {reference!r:.200}"
        raise ServiceError(
            ErrorCode.NOT_FOUND,
            f"no swap{of} is under way that could be ended; see GET /v1/reference",
            param=None if reference is None else "reference",
        )
    await service.swaps.over()
    return service.swaps.status


async def _replace(service: Service, wish: Wish, response: Response, *, wait: bool) -> ReferenceInfo | SwapStatus:
    """The task goes on when its client leaves."""
    if service.together is not None:
        if wish.hold or wish.version is not None or not wait:
            raise ServiceError(
                ErrorCode.INVALID_VALUE,
                "the replicas of this cluster change together by themselves: leave out hold, version and wait",
                param="hold" if wish.hold else "version" if wish.version is not None else "wait",
            )
        return await service.together.change(wish)
    task = service.swaps.begin(wish)
    if wait:
        return await (service.swaps.up(task) if wish.hold else asyncio.shield(task))
    response.status_code = HTTPStatus.ACCEPTED
    status = service.swaps.status
    assert status is not None
    return status
