"""What the connections of one server share: their limits, how many there are, and which of them may be closed for another.

When all places are taken, a newcomer gets the place of whoever has waited longest without a request under way: first of
those that never finished one, then of those that idle between two. Probes come through while somebody holds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.middleware.bodies.budget import ByteBudget

RETRY_AFTER_SECONDS = 1.0


class Connection(Protocol):
    def make_room(self) -> None:
        """Close at once: no request is under way here."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """connections: open at a time. header_bytes, headers: of one request. header_seconds: from its first byte to its last
    header. stall_seconds: see `middleware.pace`, for who reads an answer, or still sends a body that was refused."""

    connections: int
    header_bytes: int
    headers: int
    header_seconds: float
    stall_seconds: float


class House:
    """One event loop. refused: told of every refusal that the application does not see."""

    def __init__(self, limits: Limits, budget: ByteBudget, refused: Callable[[ServiceError], None]) -> None:
        self.limits = limits
        self.budget = budget
        self.refused = refused
        # Without a request under way, longest first (a dict keeps its order): strangers, and those that finished one.
        self._strangers: dict[Connection, None] = {}
        self._idle: dict[Connection, None] = {}

    def waits(self, connection: Connection, *, stranger: bool) -> None:
        """No request is under way here; a connection that waits already keeps its place."""
        (self._strangers if stranger else self._idle).setdefault(connection)

    def works(self, connection: Connection) -> None:
        """A request is under way, or the connection is gone."""
        self._strangers.pop(connection, None)
        self._idle.pop(connection, None)

    def enter(self, newcomer: Connection, there_are: int) -> None:
        """Make room for a newcomer when there are too many. Raises ServiceError (503) when every other one is at work."""
        if there_are > self.limits.connections:
            victim = next((c for group in (self._strangers, self._idle) for c in group if c is not newcomer), None)
            if victim is None:
                raise ServiceError(
                    ErrorCode.TOO_MANY_CONNECTIONS,
                    f"{self.limits.connections} connections are open (--max-connections) and each has a request under "
                    "way; come back, or use fewer connections",
                    retry_after=RETRY_AFTER_SECONDS,
                )
            self.works(victim)
            victim.make_room()
