"""One replica: the server's own application, in an actor that has a GPU or a share of the cores."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from grpo_client.protocol import ReferenceInfo
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from grpo_server.config import ServerConfig
from grpo_server.engine.config import EngineConfig
from grpo_server.engine.environment import set_environment
from grpo_server.errors import ServiceError
from grpo_server.lifecycle import Service
from grpo_server.phase import Phase
from grpo_server.replicas.member import Member, Outcome
from grpo_server.swapping.wish import Wish

logger = logging.getLogger(__name__)

# Within Ray's own time for a health check, 30 s.
SECONDS_TO_AGREE = 10.0


class Together:
    """Says it to the coordinator of the cluster."""

    def __init__(self, references: DeploymentHandle[Any]) -> None:
        self._references = references

    async def change(self, wish: Wish) -> ReferenceInfo:
        outcome = await self._references.change.remote(wish)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def cancel(self) -> None:
        if (error := await self._references.cancel.remote()) is not None:
            raise error


@serve.ingress()
class Replica:
    """settings: of the server. references: the coordinator's handle.

    Ray sends requests once the first health check has passed, which waits for the model.
    """

    async def __init__(self, settings: dict[str, Any], references: DeploymentHandle[Any]) -> None:
        config = ServerConfig(**settings)
        if config.threads is None and config.replica_gpus == 0 and config.replica_cpus >= 1:
            config = config.model_copy(update={"threads": int(config.replica_cpus)})
        set_environment(config.mode, config.threads, share_cores=config.share_cores)

        from grpo_server import logs
        from grpo_server.app import create_app
        from grpo_server.engine import load_engine
        from grpo_server.stages import Stages

        logs.configure(config.log_level, config.log_format)
        told: EngineConfig = await references.to_load.remote()
        told = replace(told, threads=config.threads)
        stages = Stages()
        # of the cluster, and kept by the coordinator: a directory belongs to one process
        alone = config.model_copy(update={"state_dir": None})
        self._app = create_app(alone, lambda: load_engine(told, stages.enter), stages)
        self._references = references
        self._service: Service = self._app.state.service
        self._service.together = Together(references)
        self._member = Member(serve.get_replica_context().replica_id.unique_id, self._service, told)
        self._serves = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def check_health(self) -> None:
        """Raises for a replica that must be started anew: its model did not load, or it hosts another reference."""
        await self._service.loaded.wait()
        if self._service.phase is Phase.FAILED:
            raise RuntimeError(self._service.progress)
        if not self._member.stale and not await self._agrees():
            self._member.leave()
        if self._member.stale:
            raise RuntimeError(f"version {self._member.hosts.version} is not what the other replicas host")
        self._serves = True

    async def _agrees(self) -> bool:
        """Whether it hosts what the others do. Nobody begins to serve unasked; who serves already goes on when the coordinator
        is away, which Ray is then about to start anew."""
        asked = self._references.agrees.remote(self._member.hosts, self._service.engine.info, starts=not self._serves)
        if not self._serves:
            return await asked
        try:
            async with asyncio.timeout(SECONDS_TO_AGREE):
                return await asked
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("the coordinator of the replicas does not answer: %s", type(error).__name__)
            return True

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling` decides by."""
        ready = self._service.loaded.is_set() and self._service.phase is not Phase.FAILED
        return {"queue_tokens": float(self._service.scheduler.admission.tokens) if ready else 0.0}

    # --- what the coordinator says ---------------------------------------------------------------------------------

    async def hosted(self) -> tuple[str, Outcome]:
        return await self._member.hosted()

    async def hold(self, wish: Wish) -> tuple[str, Outcome]:
        return await self._member.hold(wish)

    async def save(self, by: str, directory: str) -> tuple[str, Outcome]:
        return await self._member.save(by, directory)

    async def commit(self, told: EngineConfig) -> tuple[str, Outcome]:
        return await self._member.commit(told)

    async def end(self) -> tuple[str, Outcome]:
        return await self._member.end()
