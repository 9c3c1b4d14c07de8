"""The stages, in order of value: what would be lost first if time ran out comes last."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from grpo_server.engine.config import Mode

Line = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A module of this package with `run(bench)`, imported in the process that runs it. limit_s: its own. mode: whose
    environment variables it runs under."""

    name: str
    limit_s: float
    mode: Mode = "fast"

    def run(self) -> Callable[[Any], Iterator[Line]]:
        """Its function."""
        return importlib.import_module(f"{__package__}.{self.name}").run


# 525 seconds: under nine minutes if every stage takes all of its time.
STAGES = {
    stage.name: stage
    for stage in (
        Stage("device", 25),
        Stage("attention", 75),
        Stage("products", 45, "invariant"),
        Stage("head", 75),
        Stage("backward", 55),
        Stage("model", 130),
        Stage("invariance", 60, "invariant"),
        Stage("service", 60),
    )
}
