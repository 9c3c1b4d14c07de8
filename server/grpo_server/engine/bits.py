"""Whether a score keeps its bits alone, in company, in another order: claimed only where the loaded model shows it.

A matrix product chooses its kernel by the number of rows, so that a row may change its bits when others join it. MKL's
strict reproducible mode is known to let it keep them at any height (seen on Intel and AMD, at every width of vectors): there
a few hundred rows of the model are proof enough. Elsewhere (cuBLAS, OpenBLAS, MKL in another mode) each kind of product
that the model makes is tried up to the height of a full batch first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from grpo_client.protocol import FloatArray
from grpo_numerics import default_tile
from torch import Tensor

from .anatomy import Anatomy
from .config import EngineConfig
from .contract import Piece
from .probe import Score

log = logging.getLogger(__name__)

# Streams are a multiple of 32 rows, head blocks one of 16.
_STREAM_HEIGHTS = (32, 64, 96, 160, 192, 320, 768, 1056, 2048, 4096, 6144)
_HEAD_HEIGHTS = (16, 48, 208, 1024)


def keeps_bits(
    config: EngineConfig, parts: Anatomy, score: Score, pieces: Sequence[Piece], together: Sequence[FloatArray]
) -> bool:
    """Whether `bitwise` may be claimed for what `score` computes. together: log-probs that it gave for the pieces as one
    batch."""
    constant = config.batch_rows is not None  # every product has one height, whatever is in the batch
    if config.mode != "exact" and not constant:
        return False
    kept = constant or _strict_mkl(parts.device) or _products_keep_bits(parts)
    if kept and _same_bits(score, pieces, together):
        return True
    log.warning(
        "scores of this model depend on the batch here: `bitwise` is not claimed%s",
        "" if constant else "; --constant-shape makes all batches alike",
    )
    return False


def _strict_mkl(device: torch.device) -> bool:
    return (
        device.type == "cpu"
        and torch.backends.mkl.is_available()
        and os.environ.get("MKL_CBWR", "").endswith(",STRICT")
    )


@torch.inference_mode()
def _products_keep_bits(parts: Anatomy) -> bool:
    """Whether a row of the body's and the head's products has the same bits at every height."""
    return all(_rows_keep_bits(weight, _STREAM_HEIGHTS) for weight in parts.products) and _rows_keep_bits(
        parts.weight[: default_tile(parts.weight.shape[1]).vocab].float(), _HEAD_HEIGHTS
    )


def _rows_keep_bits(weight: Tensor, heights: Iterable[int]) -> bool:
    """weight: (N, D)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(max(heights), weight.shape[1], generator=generator).to(weight)
    whole = torch.nn.functional.linear(x, weight)
    return all(torch.equal(torch.nn.functional.linear(x[:height], weight), whole[:height]) for height in heights)


def _same_bits(score: Score, pieces: Sequence[Piece], together: Sequence[FloatArray]) -> bool:
    """Whether scores keep their bits: the whole batch, its reverse, each group's last completion alone."""
    backwards = [s.logprobs for s in score(list(reversed(pieces)))]
    if not all(np.array_equal(a, b) for a, b in zip(together, reversed(backwards), strict=True)):
        return False
    for piece, whole in zip(pieces, together, strict=True):
        last = next(c for c in reversed(piece.completions) if len(c))
        [alone] = score([Piece(piece.prompt, (last,), piece.temperature)])
        end = len(whole) if len(piece.completions[-1]) else sum(len(c) for c in piece.completions)
        if not np.array_equal(whole[end - len(last) : end], alone.logprobs):
            return False
    return True
