"""Probes. /livez: the process answers, however busy. /readyz and /health: it would take a request now."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from grpo_server.errors import ServiceError
from grpo_server.lifecycle import Service
from grpo_server.phase import Phase
from grpo_server.routes._common import ServiceDep

router = APIRouter(tags=["probes"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """True while the process lives: loading, busy, draining or not."""
    return {"status": "alive"}


@router.get("/readyz")
@router.get("/health")
@router.get("/health/", include_in_schema=False)
async def readyz(service: ServiceDep) -> JSONResponse:
    """True when requests are taken: 503 with Retry-After while loading, swapping or draining."""
    if service.phase is Phase.READY:
        return JSONResponse({"status": "ready", "version": service.references.default.engine.info.version})
    refusal = _refusal(service)
    body = {"status": service.phase.value, "detail": service.progress, **refusal.body()}
    return JSONResponse(body, HTTPStatus.SERVICE_UNAVAILABLE, refusal.headers())


def _refusal(service: Service) -> ServiceError:
    try:
        service.scheduler.door.refuse_if_closed()
    except ServiceError as refusal:
        return refusal
    raise AssertionError(f"not ready and nothing to say: {service.phase}")
