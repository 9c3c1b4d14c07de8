"""What to do when memory runs out: recognise it, and cut a batch in two that together ask the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .contract import Piece, PieceScores


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a type for it; the CPU allocator says it in words, in a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "bad_alloc" in str(error))


@dataclass(frozen=True, slots=True)
class Halves:
    """Two batches; `cut` when they are the completions of one piece and not pieces."""

    first: list[Piece]
    second: list[Piece]
    cut: bool

    def join(self, first: list[PieceScores], second: list[PieceScores]) -> list[PieceScores]:
        """The answers of both halves as answers to the whole."""
        if not self.cut:
            return first + second
        [a], [b] = first, second
        extras = {name: np.concatenate([a.extras[name], b.extras[name]]) for name in a.extras}
        return [PieceScores(np.concatenate([a.logprobs, b.logprobs]), np.concatenate([a.status, b.status]), extras)]


def halve(pieces: Sequence[Piece]) -> Halves | None:
    """Halve a batch by pieces, or a lone piece by completions. None when one completion is all there is."""
    if len(pieces) > 1:
        middle = len(pieces) // 2
        return Halves(list(pieces[:middle]), list(pieces[middle:]), cut=False)
    [piece] = pieces
    if len(piece.completions) < 2:
        return None
    middle = len(piece.completions) // 2
    first, second = (
        replace(
            piece, completions=piece.completions[s], token_ids=None if piece.token_ids is None else piece.token_ids[s]
        )
        for s in (slice(middle), slice(middle, None))
    )
    return Halves([first], [second], cut=True)
