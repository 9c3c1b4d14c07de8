"""All references of a server, by name: which engine answers a request that names one, or none."""

from __future__ import annotations

from collections.abc import Iterator

from grpo_client.protocol import ReferenceInfo

from grpo_server.engine.contract import HostedEngine
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.swapping.house import House

# By the field that names a reference which is not here.
_REMEDIES = {
    "model": "--model NAME=MODEL and --served-name give the names that clients use",
    "reference": "POST /v1/references, or grpo-client load, hosts a further one",
    "base": "an adapter is laid on one of these",
    "name": "GET /v1/references lists them",
}


class References:
    """Belongs to the event loop. The first one that is added answers who names none."""

    def __init__(self) -> None:
        self._houses: list[House] = []
        self._leaving: list[House] = []

    def __iter__(self) -> Iterator[House]:
        """Those that can be asked, the default first."""
        return iter(self._houses)

    def __len__(self) -> int:
        return len(self._houses)

    @property
    def default(self) -> House:
        """It answers who names none. There is one."""
        return self._houses[0]

    @property
    def names(self) -> list[str]:
        """What clients may ask for."""
        return [house.name for house in self._houses]

    def named(self, name: str | None, param: str = "model") -> House:
        """None: the default one. param: the field that names it. Raises ServiceError (404), with the names that there are:
        scores of another model than the one that was named would be wrong numbers."""
        if name is None:
            return self.default
        for house in self._houses:
            if house.name == name:
                return house
        others = ", ".join(repr(known) for known in self.names)
        raise ServiceError(
            ErrorCode.MODEL_NOT_FOUND,
            f"the model {name!r:.200} is not here; this server hosts {others} ({_REMEDIES[param]})",
            param=param,
        )

    def add(self, house: House) -> None:
        """From now on it can be asked."""
        self._houses.append(house)

    async def drop(self, house: House) -> None:
        """From now on it is asked no more; over when it has answered what it accepted, and let go of its weights."""
        self._houses.remove(house)
        self._leaving.append(house)
        await house.left()
        self._leaving.remove(house)

    @property
    def engines(self) -> list[HostedEngine]:
        """All whose weights are in memory."""
        return [engine for house in (*self._houses, *self._leaving) for engine in house.engines]

    def hosting(self, info: ReferenceInfo) -> HostedEngine | None:
        """The engine with this reference; None when it has left."""
        return next((engine for engine in self.engines if engine.info == info), None)

    def close(self) -> None:
        """Let go of all weights, on the compute thread."""
        for house in (*self._houses, *self._leaving):
            house.close()
