"""Decides for all replicas: what they load, and when they change.

    look > hold on all > (the same?) > (save one) > record > commit on all

Up to `record` anything that goes wrong ends it on all, and nothing has changed. What is recorded is what replicas load that
start later, after a failure or to take a share of the load, so that a replica which dies at any point comes back as the others
are. One that starts during a change waits for its end; one that missed it, however that came, is found out by `agrees` and
starts anew.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_client.protocol import ReferenceInfo

from grpo_server.config import ServerConfig
from grpo_server.engine.config import EngineConfig
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.replicas.member import Outcome
from grpo_server.swapping.refusals import RETRY_AFTER_SECONDS
from grpo_server.swapping.resume import record_start, resumed
from grpo_server.swapping.state import StateDir
from grpo_server.swapping.wish import Wish

logger = logging.getLogger(__name__)

# tell("hold", wish): has every replica that runs do that, and gives what each that lived through it says, by name.
Tell = Callable[..., Awaitable[Mapping[str, Outcome]]]


class Coordinator:
    """Belongs to one event loop. state: a directory that all replicas can read, in which what was mixed is kept and a restart
    of everything finds who was hosted; None: nothing can be mixed, and such a restart begins with the model of `config`."""

    def __init__(self, config: ServerConfig, tell: Tell, state: StateDir | None) -> None:
        self._config, self._tell, self._state = config, tell, state
        self._told = resumed(config, state)
        self._up: EngineConfig | None = None  # as the first that came up said, and each change since
        self._changing = asyncio.Lock()

    async def to_load(self) -> EngineConfig:
        """What a replica that starts now has to load; behind a change that is under way."""
        async with self._changing:
            return self._told

    async def agrees(self, hosts: EngineConfig, info: ReferenceInfo, *, starts: bool) -> bool:
        """Whether a replica hosts what the others do. The first one that asks is right. starts: it does not serve yet, and may
        wait until a change is over."""
        if self._changing.locked() and not starts:
            return True
        async with self._changing:
            if self._up is None:
                if self._state is not None:
                    source, revision = self._config.references[0].source, self._config.revision
                    await asyncio.to_thread(record_start, source, revision, self._state, info)
                self._up = self._told = hosts
            return (hosts.version, hosts.fingerprint) == (self._up.version, self._up.fingerprint)

    async def cancel(self) -> None:
        """End the change that is under way. Raises ServiceError (404) where there is none."""
        if not self._changing.locked():
            raise ServiceError(ErrorCode.NOT_FOUND, "no swap is under way that could be ended")
        await self._tell("end")

    async def change(self, wish: Wish) -> ReferenceInfo:
        """Have all replicas host it, or none; who answers from now on. Raises ServiceError."""
        if self._changing.locked():
            raise ServiceError(
                ErrorCode.SWAP_UNDER_WAY,
                "the replicas are changing to another reference; come back, or end that with DELETE /admin/reference",
                retry_after=RETRY_AFTER_SECONDS,
            )
        if wish.decay is not None and self._state is None:
            raise ServiceError(
                ErrorCode.INVALID_VALUE,
                "an average exists in the replicas' memory alone, and those that start later could not load it; name a "
                "directory that all nodes share with --state-dir",
                param="decay",
            )
        async with self._changing:
            return await self._change(wish)

    async def _change(self, wish: Wish) -> ReferenceInfo:
        hosted = _sound(await self._tell("hosted"))
        version = max(info.version for info in hosted.values()) + 1
        staging = None
        try:
            held = _sound(await self._tell("hold", replace(wish, version=version, hold=True)))
            by, info = next(iter(held.items()))
            if wish.decay is not None and self._state is not None:
                staging = self._state.new_directory()
                _sound(await self._tell("save", by, str(staging)))
            told = await asyncio.to_thread(self._recorded, wish, info, staging)
        except BaseException:
            await self._tell("end")
            raise
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)  # what is kept has another name by now
        self._told = self._up = told
        outcomes = await self._tell("commit", told)
        for name, outcome in outcomes.items():
            if isinstance(outcome, ServiceError):
                logger.warning("%s has missed version %d and starts anew: %s", name, version, outcome.message)
        logger.info("%d replicas serve version %d, fingerprint %s", len(outcomes), version, info.fingerprint[:16])
        return info

    def _recorded(self, wish: Wish, info: ReferenceInfo, staging: Path | None) -> EngineConfig:
        """What replicas load from now on. Raises ServiceError when it cannot be written down."""
        mixed = wish.decay is not None
        name = self._told.name or self._told.model if mixed else wish.model
        kept = None
        try:
            if self._state is not None and (last := self._state.recorded) is not None:
                kept = None if staging is None else self._state.keep(staging, info.version)
                changed: dict[str, Any] = {
                    "version": info.version,
                    "fingerprint": info.fingerprint,
                    "model": name,
                    "revision": None if mixed else wish.revision,
                    "kept": kept,
                }
                self._state.record(last.model_copy(update=changed))
                self._state.prune()
        except OSError as error:
            raise ServiceError(
                ErrorCode.INSUFFICIENT_STORAGE, f"who is hosted cannot be written down: {error}"
            ) from error
        return replace(
            self._told,
            model=wish.model if kept is None or self._state is None else str(self._state.path / kept),
            revision=None if mixed else wish.revision,
            name=name,
            version=info.version,
            fingerprint=info.fingerprint,
        )


def _sound(outcomes: Mapping[str, Outcome]) -> dict[str, ReferenceInfo]:
    """What all say, if all could and are the same. Raises ServiceError."""
    infos: dict[str, ReferenceInfo] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, ServiceError):
            raise outcome
        infos[name] = outcome
    if not infos:
        raise ServiceError(ErrorCode.LOADING, "no replica is up that could change", retry_after=RETRY_AFTER_SECONDS)
    if len({info.fingerprint for info in infos.values()}) > 1:
        told = ", ".join(f"{name}: {info.fingerprint[:16]}" for name, info in infos.items())
        raise ServiceError(
            ErrorCode.MODEL_UNAVAILABLE, f"the replicas make different references of it ({told})", param="model"
        )
    return infos
