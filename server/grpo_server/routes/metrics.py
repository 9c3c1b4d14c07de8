"""What Prometheus scrapes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response
from prometheus_client.exposition import choose_encoder

from grpo_server.routes._common import ServiceDep

router = APIRouter(tags=["probes"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceDep, accept: Annotated[str, Header()] = "") -> Response:
    """In Prometheus' text format, or OpenMetrics where the scraper asks for it."""
    encode, content_type = choose_encoder(accept)
    return Response(encode(service.metrics.registry), media_type=content_type)
