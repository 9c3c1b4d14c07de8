"""What the service needs of an engine beyond scoring, and how it is given one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from grpo_client.protocol import ReferenceInfo

from grpo_server.engine.contract import Engine, Hosted


class HostedEngine(Engine, Protocol):
    """An engine with a reference that can be replaced. `swap` and `mix` run on the compute thread, alone.

    Both raise OSError or ValueError when the source cannot be loaded or does not fit, and leave the old reference as it
    was.
    """

    @property
    def hosted(self) -> Hosted:
        """Who answers now; `info` is its identity."""
        ...

    def swap(self, source: str, revision: str | None) -> ReferenceInfo:
        """Host another model; version + 1."""
        ...

    def mix(self, source: str, decay: float) -> ReferenceInfo:
        """weights = decay * weights + (1 - decay) * those of source; version + 1."""
        ...

    def close(self) -> None: ...


# Loads the model, in the thread in which it will compute. Whatever it raises is a failed start.
EngineLoader: TypeAlias = Callable[[], HostedEngine]
