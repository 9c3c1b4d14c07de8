"""How far a swap is, for /v1/reference, the log and whoever wants to end it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

Kind = Literal["swap", "ema", "load"]
Outcome = Literal["running", "done", "failed", "cancelled", "timeout"]

WORDS = {
    "wait": "waiting until the reference before is let go of",
    "fetch": "bringing the files here",
    "empty": "waiting for what was accepted before",
    "load": "reading the weights",
    "probe": "comparing scores with the model's own forward",
    "verify": "computing the fingerprint of weights, config and tokenizer",
    "save": "keeping it for a restart",
    "hold": "up, and waiting for the word to serve",
    "record": "writing down who is hosted",
}


class SwapStatus(BaseModel):
    """A swap, a mix or the loading of a further reference, under way or the last one. reference: whose. seconds: since it
    began, or all that it took. bytes: brought here so far, total_bytes: of what there is to bring; null where not known.
    memory: where the new weights were put, and in `why_in_place` the reason if that stopped the serving. version: that it led
    to. error: why it did not."""

    model_config = ConfigDict(frozen=True)

    id: int
    kind: Kind
    model: str
    reference: str
    state: Outcome
    stage: str
    seconds: float
    stage_seconds: float
    bytes: int | None = None
    total_bytes: int | None = None
    memory: Literal["beside", "in-place"] | None = None
    why_in_place: str | None = None
    version: int | None = None
    error: str | None = Field(None, description="Why it failed, was cancelled or ran out of time.")


class SwapEnded(Exception):
    """Raised in whatever works for a swap that was ended meanwhile."""


class Progress:
    """Of one swap. reference: what operators call the one that is changed. `enter` may be called on any thread; each change is
    one assignment. clock: seconds, monotonic."""

    def __init__(
        self, number: int, kind: Kind, model: str, reference: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.kind: Kind = kind
        self.number, self.model, self.reference = number, model, reference
        self.state: Outcome = "running"
        self.memory: Literal["beside", "in-place"] | None = None
        self.why_in_place: str | None = None
        self.total_bytes: int | None = None
        self.arriving: Path | None = None  # the directory in which files appear, while they do
        self.brought: int | None = None
        self.version: int | None = None
        self.error: str | None = None
        self.ending = False
        self._clock = clock
        self._began = clock()
        self._stage = ("wait", self._began)
        self._ended: float | None = None

    @property
    def stage(self) -> str:
        return self._stage[0]

    def enter(self, stage: str) -> None:
        """Begin a stage: a key of WORDS. Raises SwapEnded when nobody wants the swap any more."""
        if self.ending:
            raise SwapEnded
        self._tell_how_long()
        self._stage = (stage, self._clock())
        logger.info("swap %d, %s: %s", self.number, stage, WORDS[stage], extra={"swap": self.number, "stage": stage})

    def finish(self, state: Outcome, error: str | None) -> None:
        """Over, one way or another."""
        self._tell_how_long()
        self.error, self._ended = error, self._clock()
        self.state = state

    @property
    def seconds(self) -> float:
        return (self._clock() if self._ended is None else self._ended) - self._began

    def status(self) -> SwapStatus:
        """As it is now."""
        stage, since = self._stage
        return SwapStatus(
            id=self.number,
            kind=self.kind,
            model=self.model,
            reference=self.reference,
            state=self.state,
            stage=stage,
            seconds=round(self.seconds, 3),
            stage_seconds=round((self._clock() if self._ended is None else self._ended) - since, 3),
            bytes=self.brought if self.arriving is None else bytes_below(self.arriving),
            total_bytes=self.total_bytes,
            memory=self.memory,
            why_in_place=self.why_in_place,
            version=self.version,
            error=self.error,
        )

    def _tell_how_long(self) -> None:
        stage, since = self._stage
        seconds = self._clock() - since
        logger.info(
            "swap %d, %s: done in %.1f s",
            self.number,
            stage,
            seconds,
            extra={"swap": self.number, "stage": stage, "seconds": round(seconds, 3)},
        )


def bytes_below(directory: Path) -> int:
    """Of all files in it; those that vanish meanwhile do not count."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
