"""uvicorn's two HTTP protocols behind the guard: httptools, and h11 where there is no httptools."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from grpo_server.connections.guard import Guard
from grpo_server.connections.house import House
from grpo_server.connections.refusal import head_too_large

# h11's names of the states in which no message is coming in.
BETWEEN = frozenset({"IDLE", "MUST_CLOSE", "CLOSED", "ERROR"})


class GuardedH11(Guard, H11Protocol):
    """h11 itself limits the bytes of a head, of a chunk's extension and of trailers, each by its incomplete event."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        config.h11_max_incomplete_event_size = self.house.limits.header_bytes
        super().__init__(config=config, **kwargs)

    def awaits_request(self) -> bool:
        return repr(self.conn.their_state) in BETWEEN

    def has_begun(self) -> bool:
        return bool(self.conn.trailing_data[0].strip(b"\r\n"))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # While a request is answered, h11 keeps whatever comes behind it.
        if repr(self.conn.their_state) == "DONE" and len(self.conn.trailing_data[0]) > self.house.limits.header_bytes:
            self.refuse(head_too_large(self.house.limits.header_bytes))


def http_protocol(house: House, prefer: str = "httptools") -> type[asyncio.Protocol]:
    """The class that `uvicorn.Config(http=...)` takes, for one server."""
    base: type[Guard] = GuardedH11
    if prefer == "httptools" and importlib.util.find_spec("httptools") is not None:
        from grpo_server.connections.httptools import GuardedHttpTools

        base = GuardedHttpTools

    guarded: Any = type(base.__name__, (base,), {"house": house})
    return guarded
