"""Which of several servers gets the next request: the one that its prompt belongs to on a `Ring`, unless that is busier than
the others; and what has no prompt goes to the least busy one. Only those that have not failed lately are asked.

A server that fails is set aside, for twice as long each time, and tried again when the time is over; one success clears
it. When all are set aside the one that comes back first is used: how long to wait is the retry policy's to say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from grpo_client.errors import GrpoClientError
from grpo_client.http.retry import asked_wait, is_worth_another_try
from grpo_client.ring import Ring


@dataclass(slots=True)
class Server:
    """What the balancer knows of one. until: clock time up to which it is set aside. used: turn of its last use."""

    url: str
    in_flight: int = 0
    failures: int = 0
    until: float = 0.0
    used: int = 0


class Balancer:
    """Thread-safe. first_aside, max_aside: seconds that a server is set aside after one failure, and at most. ring: of these
    servers, where others have made it already."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        first_aside: float = 1.0,
        max_aside: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        ring: Ring | None = None,
    ) -> None:
        self._servers = [Server(url) for url in urls]
        self._by_url = {server.url: server for server in self._servers}
        self._ring = ring or (Ring(urls) if len(urls) > 1 else None)
        self._first_aside = first_aside
        self._max_aside = max_aside
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0

    @contextmanager
    def lease(self, key: int | None = None) -> Generator[str]:
        """A base URL for one try. key: `ring.prompt_key` of what is asked about, to go where it is warm. An exception that is
        worth another try sets the server aside and goes on its way."""
        server = self._take(key)
        try:
            yield server.url
        except GrpoClientError as error:
            self._note(server, error)
            raise
        else:
            self._note(server, None)
        finally:
            with self._lock:
                server.in_flight -= 1

    def ready(self) -> bool:
        """Whether some server is not set aside."""
        with self._lock:
            now = self._clock()
            return any(e.until <= now for e in self._servers)

    def _take(self, key: int | None) -> Server:
        with self._lock:
            now = self._clock()
            ready = [e for e in self._servers if e.until <= now]
            if ready and key is not None and self._ring is not None:
                server = self._by_url[self._ring.place(key, {e.url: e.in_flight for e in ready})]
            else:
                soonest = min(self._servers, key=lambda e: e.until)
                server = min(ready, key=lambda e: (e.in_flight, e.used), default=soonest)
            self._turn += 1
            server.used = self._turn
            server.in_flight += 1
            return server

    def _note(self, server: Server, error: GrpoClientError | None) -> None:
        with self._lock:
            if error is None or not is_worth_another_try(error):  # it answered, if only to refuse
                server.failures, server.until = 0, 0.0
                return
            aside = min(self._max_aside, self._first_aside * 2.0 ** min(server.failures, 30))
            server.failures += 1
            server.until = self._clock() + max(aside, asked_wait(error))
