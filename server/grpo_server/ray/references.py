"""The coordinator as a deployment of its own: one for the cluster, started anew by Ray when its node is gone."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_client.protocol import ReferenceInfo
from ray import serve

from grpo_server.config import ServerConfig
from grpo_server.engine.config import EngineConfig
from grpo_server.errors import ServiceError
from grpo_server.replicas.coordinator import Coordinator
from grpo_server.replicas.member import Outcome
from grpo_server.swapping.state import StateDir
from grpo_server.swapping.wish import Wish


class References:
    """settings: of the server."""

    async def __init__(self, settings: dict[str, Any]) -> None:
        from grpo_server import logs

        config = ServerConfig(**settings)
        logs.configure(config.log_level, config.log_format)
        self._application = serve.get_replica_context().app_name
        self._state = None if config.state_dir is None else StateDir(config.state_dir)
        self._coordinator = Coordinator(config, self._tell, self._state)

    async def _tell(self, what: str, *arguments: Any) -> Mapping[str, Outcome]:
        """Those that died meanwhile say nothing; what takes their place asks `to_load`."""
        replicas = serve.get_deployment_handle("server", self._application)
        said = await replicas.broadcast(what, *arguments).results_async(return_exceptions=True)
        return dict(one for one in said if not isinstance(one, BaseException))

    async def to_load(self) -> EngineConfig:
        return await self._coordinator.to_load()

    async def agrees(self, hosts: EngineConfig, info: ReferenceInfo, *, starts: bool) -> bool:
        return await self._coordinator.agrees(hosts, info, starts=starts)

    async def change(self, wish: Wish) -> Outcome:
        try:
            return await self._coordinator.change(wish)
        except ServiceError as error:
            return error

    async def cancel(self) -> ServiceError | None:
        try:
            await self._coordinator.cancel()
        except ServiceError as error:
            return error
        return None

    def __del__(self) -> None:
        if (state := getattr(self, "_state", None)) is not None:
            state.close()
