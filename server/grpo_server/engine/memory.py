"""What to do when memory runs out: recognise it, and cut a batch in two that together ask the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .config import BatchLimits, EngineConfig
from .contract import Piece, PieceScores
from .device import Device

# A CPU's products are at full speed from some hundred rows on: more would only make small requests wait for large ones.
_CPU_TOKENS = 6144
# From here on a GPU gains nothing by more rows; and what the ranks of one model take without asking each other.
_GPU_TOKENS = 32_768
_SHARED_TOKENS = 8192
# Of the memory that is free once the model is loaded: the rest is for fragments and for other users of the device.
_OF_FREE = 0.85
_STEP = 256
# A host that is out of memory at this moment will have some again.
_LEAST_BYTES = 512 << 20

# The CPU's allocator, C++, CUDA and HIP and their libraries; a handle of cuBLAS that cannot be made for want of memory is "not
# initialized". A kernel that wants more shared memory than a GPU has is out of resources: no smaller batch helps.
_IN_WORDS = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|out of memory|OutOfMemory|"
    r"_STATUS_ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED|ErrorMemoryAllocation",
    re.IGNORECASE,
)


def batch_limits(config: EngineConfig, device: Device, token_bytes: int) -> BatchLimits:
    """A full batch: as configured, or as many tokens as speed asks for and memory holds, in most of what is free.

    token_bytes: working memory of one token. Call it when the model is loaded.
    """
    nbytes = config.max_batch_bytes or max(_LEAST_BYTES, int(_OF_FREE * device.free_bytes()))
    if config.max_batch_tokens is not None:
        return BatchLimits(config.max_batch_tokens, nbytes)
    if config.tensor_parallel:
        return BatchLimits(_SHARED_TOKENS, nbytes)
    wanted = _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS
    return BatchLimits(max(_STEP, min(wanted, nbytes // token_bytes // _STEP * _STEP)), nbytes)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, here or in what this error was raised from. Torch's allocator on a GPU has a type for it;
    drivers, libraries and the CPU's allocator say it in words, in a RuntimeError or an AcceleratorError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and _IN_WORDS.search(str(error)):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


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
    return Halves([piece.part(slice(middle))], [piece.part(slice(middle, None))], cut=True)
