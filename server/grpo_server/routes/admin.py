"""Changing the reference while it serves. Needs the admin key; `auth` sees to that.

Accepted requests are answered by the reference that accepted them; those that arrive meanwhile get a 503.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastapi import APIRouter, Request
from grpo_client.protocol import ReferenceInfo
from pydantic import BaseModel, ConfigDict, Field

from grpo_server.engine.contract import HostedEngine
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.routes._common import ServiceDep
from grpo_server.routes.dialects._bodies import described, read_json

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/admin", tags=["admin"])


class SwapRequest(BaseModel):
    """Host another model."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, description="Directory, .gguf file, hub id, or demo.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")


class MixRequest(BaseModel):
    """weights = decay * weights + (1 - decay) * those of `model`."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, description="A checkpoint of the same architecture.")
    decay: float = Field(ge=0, le=1, allow_inf_nan=False, description="Share of the old weights that stays.")


@router.post("/reference", openapi_extra=described(SwapRequest))
async def swap(request: Request, service: ServiceDep) -> ReferenceInfo:
    """Replace the reference; version + 1. If it cannot be loaded (422), the old one serves on."""
    change = await read_json(request, service, SwapRequest)
    return await _replace(service, lambda engine: engine.swap(change.model, change.revision))


@router.post("/reference/ema", openapi_extra=described(MixRequest))
async def mix(request: Request, service: ServiceDep) -> ReferenceInfo:
    """Move the reference towards a checkpoint; version + 1. If that does not fit (422), the old one serves on."""
    change = await read_json(request, service, MixRequest)
    return await _replace(service, lambda engine: engine.mix(change.model, change.decay))


async def _replace(service: Service, change: Callable[[HostedEngine], ReferenceInfo]) -> ReferenceInfo:
    try:
        return await service.replace(change)
    except (OSError, ValueError) as error:
        logger.info("the model was refused", exc_info=error)
        raise ServiceError(
            ErrorCode.MODEL_UNAVAILABLE,
            f"the model cannot be used: {error}; the old reference serves on",
            param="model",
        ) from error
