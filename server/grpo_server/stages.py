"""What a start or a swap is busy with: one log line a stage, with its seconds, and the words that /readyz has meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

WORDS = {
    "import": "importing torch and transformers",
    "load": "reading the weights",
    "probe": "comparing scores with the model's own forward",
    "verify": "computing the fingerprint of weights, config and tokenizer",
}


class Stages:
    """One stage at a time; entering the next one ends the last. For any thread: each change is one assignment.

    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._born = clock()
        self._current: tuple[str, float] | None = None

    def enter(self, name: str) -> None:
        """Begin a stage: a key of WORDS."""
        self.leave()
        logger.info("%s: %s", name, WORDS[name], extra={"stage": name})
        self._current = (name, self._clock())

    def leave(self) -> None:
        """End the stage that runs, if one does."""
        if (running := self._current) is None:
            return
        self._current = None
        name, since = running
        seconds = self._clock() - since
        logger.info("%s: done in %.1f s", name, seconds, extra={"stage": name, "seconds": round(seconds, 3)})

    @property
    def age(self) -> float:
        """Seconds since this was made, at the start of the process."""
        return self._clock() - self._born

    def __str__(self) -> str:
        """The stage that runs and for how long; empty between stages."""
        if (running := self._current) is None:
            return ""
        name, since = running
        return f"{WORDS[name]}, for {self._clock() - since:.0f} s so far"
