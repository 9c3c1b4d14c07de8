"""The engine room: owns the model, knows nothing of HTTP. `work` is the contract, `engine` the one implementation.

Torch is imported when `load_engine` is first asked for, so that the command line can set the environment before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import EngineConfig
from .work import BatchScores, Engine, OutOfMemory, Piece, PieceScores

if TYPE_CHECKING:
    from .engine import TorchEngine

__all__ = ["BatchScores", "Engine", "EngineConfig", "OutOfMemory", "Piece", "PieceScores", "load_engine"]


def load_engine(config: EngineConfig) -> TorchEngine:
    """Load a reference, probe it, and return the engine that serves it. Raises OSError or ValueError with what to change."""
    from .engine import load_engine as load

    return load(config)
