"""What is said while a server does not answer: who, why, and for how long it will be tried. Nobody waits in silence."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

logger = logging.getLogger("grpo_client")


@dataclass(frozen=True, slots=True)
class Retry:
    """A try that failed and will be made again. error: why. tries: so far. waited, delay, left: seconds since the first
    try, until the next one, and after which no other is begun.
    """

    error: BaseException
    tries: int
    waited: float
    delay: float
    left: float

    def __str__(self) -> str:
        """One line: who, why, and how it goes on."""
        if self.delay == 0:
            return f"{self.error}; another server is asked"
        if self.tries == 1:
            return f"{self.error}; trying again for up to {self.left:.0f} s"
        return f"{self.error}; still trying after {self.waited:.0f} s, for up to {self.left:.0f} s more"


class RetryLog:
    """Logs the first failure of a server and, while it lasts, one every `every` seconds; then that it answers again.

    Thread-safe. However many requests wait, a server's failure is said once. warn, inform: what takes the lines; by default
    the logger `grpo_client`, levels WARNING and INFO. clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        warn: Callable[[str], None] = logger.warning,
        inform: Callable[[str], None] = logger.info,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._warn = warn
        self._inform = inform
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._down: dict[str, tuple[float, float]] = {}  # server -> since when, and when it was last said

    def failed(self, retry: Retry) -> None:
        """Say it, unless it was said of that server lately. To be given to `RetryPolicy` as `on_retry`."""
        server = _server(getattr(retry.error, "url", None) or "")
        now = self._clock()
        with self._lock:
            since, said = self._down.get(server, (now, None))
            if said is not None and now - said < self._every:
                return
            self._down[server] = (since, now)
        self._warn(str(retry))

    def answered(self, url: str) -> None:
        """Say that a server which was said to fail answers again."""
        if not self._down:
            return
        with self._lock:
            since, _ = self._down.pop(_server(url), (None, None))
        if since is not None:
            self._inform(f"{url} answers again after {self._clock() - since:.0f} s")


def _server(url: str) -> str:
    return urlsplit(url).netloc
