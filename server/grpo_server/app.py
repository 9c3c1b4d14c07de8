"""Puts the service together as an ASGI application. Nothing is loaded until its lifespan starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from grpo_client import tracing
from grpo_client.version import package_version

from grpo_server import error_responses, routes
from grpo_server.access.metrics import KeyCollector
from grpo_server.access.reloading import Reloading
from grpo_server.config import ServerConfig
from grpo_server.connections.tls import Certificates
from grpo_server.engine.contract import EngineLoader
from grpo_server.lifecycle import Service
from grpo_server.middleware.bodies.budget import ByteBudget
from grpo_server.middleware.bodies.limit import BodyLimit
from grpo_server.middleware.boundary import Boundary
from grpo_server.middleware.digest import DigestOfAnswers
from grpo_server.middleware.head import HeadAsGet
from grpo_server.middleware.key_gate import KeyGate, check_route
from grpo_server.middleware.tracing import Tracing
from grpo_server.phase import Phase
from grpo_server.routes.dialects.simple_grpo.shelf import SECONDS_FOR_SHELF_ROOM, Shelf
from grpo_server.routes.uploads import is_streamed
from grpo_server.schemas import ERROR_RESPONSES, request_schemas
from grpo_server.scoring import Scoring
from grpo_server.stages import Stages
from grpo_server.swapping.state import StateDir

DESCRIPTION = """\
Per-token log-probs of a frozen reference model: exact, fast, the same answer every time.

The native route is `POST /v1/logprobs`, as JSON or as safetensors. Every error on every route is an
OpenAI-shaped `{"error": {"message", "type", "param", "code"}}` that says what to do.
"""


class Application(FastAPI):
    """FastAPI, with the schemas of bodies that it does not parse itself."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema["components"]["schemas"] |= request_schemas()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}, {}]  # a server without keys asks for none
        return schema


def create_app(
    config: ServerConfig, engine_loader: EngineLoader, stages: Stages | None = None, state: StateDir | None = None
) -> FastAPI:
    """The application. `app.state.service` is its `Service`.

    engine_loader: called in a worker thread when the application starts; meanwhile /livez answers and all else is 503.
    stages: what the loader reports its progress to. state: where a restart finds who was hosted; closed at the end.
    Raises ValueError for key files and certificates that cannot be used.
    """
    service = Service(config, engine_loader, stages, state)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with app.state.reloading.watching(), service:
            yield

    app = Application(
        title="grpo-refserver",
        description=DESCRIPTION,
        version=package_version(),
        lifespan=lifespan,
        responses=ERROR_RESPONSES,
        dependencies=[Depends(check_route)],
        redirect_slashes=False,
        docs_url=None,  # routes.documentation has the page: FastAPI's own fetch their scripts from a CDN
        redoc_url=None,
        # middleware.tracing has one span a request, outside everything, and none for probes.
        telemetry={"tracing": False, "logs": False},
    )
    app.state.service = service
    app.state.certificates = certificates = Certificates.load(config)
    app.state.reloading = Reloading([part for part in (service.keys.named, certificates) if part is not None])
    if service.keys.named is not None:
        service.metrics.registry.register(KeyCollector(service.keys.named))
    app.state.scoring = Scoring(service)
    app.state.budget = budget = ByteBudget(config.max_queue_bytes, service.accepted_bytes)
    service.metrics.watch_bodies(lambda: budget.held)
    app.state.shelf = Shelf(config.max_queue_bytes, SECONDS_FOR_SHELF_ROOM) if config.simple_grpo else None
    error_responses.install(app)
    for router in routes.routers(inspector=config.ui):
        app.include_router(router)
    # Added last is outermost: a request passes Tracing, DigestOfAnswers, Boundary, KeyGate, BodyLimit, HeadAsGet, its route.
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        BodyLimit,
        max_bytes=config.max_request_bytes,
        budget=budget,
        in_thread=service.in_codec,
        stall_seconds=config.stall_timeout,
        streamed=is_streamed,
    )
    app.add_middleware(KeyGate, keys=service.keys)
    app.add_middleware(Boundary, metrics=service.metrics, draining=lambda: service.phase is Phase.DRAINING)
    app.add_middleware(DigestOfAnswers)
    if tracing.available():
        app.add_middleware(Tracing)
    return app
