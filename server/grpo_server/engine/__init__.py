"""The engine room: owns the model, knows nothing of HTTP. `contract` is what the scheduler needs of it, `engine` the one
implementation.

Torch is imported when `load_engine` is first asked for, so that the command line can set the environment before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .config import EngineConfig
from .contract import BatchScores, Engine, Hosted, OutOfMemory, Piece, PieceScores

if TYPE_CHECKING:
    from .engine import TorchEngine
    from .tensor_parallel import LeadingEngine

__all__ = [
    "BatchScores",
    "Engine",
    "EngineConfig",
    "Hosted",
    "OutOfMemory",
    "Piece",
    "PieceScores",
    "follow",
    "load_engine",
]


def load_engine(config: EngineConfig, on_stage: Callable[[str], None] = lambda _: None) -> TorchEngine | LeadingEngine:
    """Load a reference, probe it, and return the engine that serves it. Raises OSError or ValueError with what to change.

    on_stage: called with "load", "probe" and "verify" as each begins, at later swaps too.
    """
    from .start import load_engine as load

    return load(config, on_stage)


def follow(config: EngineConfig) -> None:
    """Compute beside the leading process until it ends: what the other ranks of a tensor-parallel server do."""
    from .start import follow as follow_leader

    follow_leader(config)
