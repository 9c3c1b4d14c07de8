"""What uvicorn is told so that it keeps the limits of the configuration."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI

from grpo_server.config import ServerConfig
from grpo_server.connections.house import House, Limits
from grpo_server.connections.protocols import http_protocol
from grpo_server.connections.tls import Certificates
from grpo_server.errors import ServiceError
from grpo_server.lifecycle import Service
from grpo_server.middleware.boundary import UNROUTED

logger = logging.getLogger("grpo_server.access")


def server_settings(app: FastAPI, parser: str = "httptools") -> dict[str, Any]:
    """Keyword arguments of `uvicorn.Config` for an application of `create_app`. parser: or "h11"."""
    service: Service = app.state.service

    def refused(error: ServiceError) -> None:
        service.metrics.request_done(UNROUTED, error.status, 0.0, error.code.code)
        logger.info("a connection was refused: %d %s", error.status, error.code.code)

    house = House(limits_of(service.config), app.state.budget, refused)
    certificates: Certificates | None = app.state.certificates
    return {
        "http": http_protocol(house, parser),
        "ws": "none",
        "root_path": service.config.root_path.rstrip("/"),
        **({} if certificates is None else certificates.uvicorn_settings()),
    }


def limits_of(config: ServerConfig) -> Limits:
    return Limits(
        connections=config.max_connections,
        header_bytes=config.max_header_bytes,
        headers=config.max_headers,
        header_seconds=config.header_timeout,
        stall_seconds=config.stall_timeout,
    )
