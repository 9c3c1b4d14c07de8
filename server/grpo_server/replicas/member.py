"""What a replica does when the coordinator says so. Errors are values here, for they travel to another process."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

from grpo_client.protocol import ReferenceInfo

from grpo_server.durable import sync_below
from grpo_server.engine.config import EngineConfig
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.swapping.wish import Wish

Outcome = ReferenceInfo | ServiceError


class Member:
    """name: of this replica. told: what it was told to load. stale: it has missed a change; it answers nobody, and whoever runs
    it must start it anew."""

    def __init__(self, name: str, service: Service, told: EngineConfig) -> None:
        self.name, self.told, self.stale = name, told, False
        self._service = service

    @property
    def hosts(self) -> EngineConfig:
        """What it was told to load, with version and fingerprint of what it hosts."""
        info = self._service.engine.info
        return replace(self.told, version=info.version, fingerprint=info.fingerprint)

    async def hosted(self) -> tuple[str, Outcome]:
        """Who answers here."""
        return self.name, self._service.engine.info

    async def hold(self, wish: Wish) -> tuple[str, Outcome]:
        """Bring it up beside the hosted one."""
        return self.name, await _outcome(self._held(wish))

    async def _held(self, wish: Wish) -> ReferenceInfo:
        swaps = self._service.swaps
        return await swaps.up(swaps.begin(wish))

    async def save(self, by: str, directory: str) -> tuple[str, Outcome]:
        """Say what is held; and if this is `by`, write it into a directory that all replicas can read."""
        return self.name, await _outcome(self._saved(Path(directory) if by == self.name else None))

    async def _saved(self, directory: Path | None) -> ReferenceInfo:
        engine = self._service.held
        if engine is None:
            raise ServiceError(ErrorCode.NOT_HELD, f"{self.name} no longer holds what was to be hosted")
        if directory is None:
            return engine.info

        def write() -> None:
            engine.save(directory)
            sync_below(directory)

        try:
            await self._service.in_codec(write)
        except (OSError, ValueError) as error:
            raise ServiceError(
                ErrorCode.INSUFFICIENT_STORAGE, f"the new reference cannot be kept for replicas to come: {error}"
            ) from error
        return engine.info

    async def commit(self, told: EngineConfig) -> tuple[str, Outcome]:
        """Serve what is held. A replica that does not hold it answers nobody from now on."""
        outcome = await _outcome(self._service.swaps.commit(told.version))
        if isinstance(outcome, ServiceError):
            self.leave()
        else:
            self.told = told
        return self.name, outcome

    def leave(self) -> None:
        """It hosts another reference than the others do."""
        self.stale = True
        self._service.close_door()

    async def end(self) -> tuple[str, Outcome]:
        """Let go of what is held or under way."""
        swaps = self._service.swaps
        why = ServiceError(ErrorCode.SWAP_CANCELLED, "the replicas do not change; the old reference serves on")
        if swaps.cancel(why):
            await swaps.over()
        return self.name, self._service.engine.info


async def _outcome(work: Awaitable[ReferenceInfo]) -> Outcome:
    try:
        return await work
    except ServiceError as error:
        return error
