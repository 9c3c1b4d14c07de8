"""What became of a call of a reward function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Returned:
    """What it gave."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """Why it gave nothing, in words."""

    why: str


Outcome = Returned | Failed


def failure(error: BaseException) -> Failed:
    """An exception in words."""
    return Failed(f"{type(error).__name__}: {error}")
