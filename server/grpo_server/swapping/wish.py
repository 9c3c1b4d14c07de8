"""What is asked of a server's references while it serves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from grpo_server.swapping.progress import Kind


@dataclass(frozen=True, slots=True)
class Wish:
    """To host a model; or to mix it into the hosted one with `decay` of that left. reference: under which name; None: the
    default one. version: that it gets; None: the next. hold: wait for the word before it serves. new: as a further reference,
    whose name this is. base: of an adapter, then: the name of the reference that it is laid on."""

    model: str
    revision: str | None = None
    decay: float | None = None
    reference: str | None = None
    version: int | None = None
    hold: bool = False
    new: bool = False
    base: str | None = None

    @property
    def kind(self) -> Kind:
        if self.new:
            return "load"
        return "swap" if self.decay is None else "ema"

    @property
    def source_field(self) -> str:
        """What whoever asked calls `model`."""
        return "source" if self.new else "model"

    @property
    def otherwise(self) -> str:
        """What holds when it fails."""
        return "the references that were here serve on" if self.new else "the old reference serves on"


@dataclass(frozen=True, slots=True)
class Word:
    """Between a swap that is held and whoever asked for it. up: it waits. said: it may serve."""

    up: asyncio.Event = field(default_factory=asyncio.Event)
    said: asyncio.Event = field(default_factory=asyncio.Event)
