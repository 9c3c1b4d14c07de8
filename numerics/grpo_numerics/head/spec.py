"""What a head is and how much of its logits exists at a time: values, and the memory that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROW_MULTIPLE = 16
VOCAB_MULTIPLE = 16  # rows of a tile begin on a cache line
_DEFAULT_ROWS = 1024
_DEFAULT_VOCAB = 2048
_SLICE_FLOATS = 4 << 20  # an upcast weight slice takes at most 16 MiB in fp32
GATHER_FLOATS = 1 << 18  # weight rows gathered at a time for the targets' own logits


class Tile(NamedTuple):
    """How much of the (rows, vocabulary) logits exists at a time."""

    rows: int
    vocab: int


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What a model does between its last hidden state and its logits, beside the weight.

    bias: (V,) or None. logit_scale: factor on the biased logits (Cohere, Granite's 1/scaling). softcap: c for
    c tanh(z / c), applied after the scale (Gemma 2), or None.
    """

    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap must be > 0 or None, got {self.softcap}")


def default_tile(dim: int) -> Tile:
    """The tile for hidden size `dim`: large enough for the GEMM's full speed, about 8 MiB of logits."""
    fitting = _SLICE_FLOATS // max(dim, 1) // VOCAB_MULTIPLE * VOCAB_MULTIPLE
    return Tile(_DEFAULT_ROWS, max(256, min(_DEFAULT_VOCAB, fitting)))


def scratch_bytes(dim: int, tile: Tile | None = None, dtype: torch.dtype = torch.float32) -> int:
    """Upper bound of the memory that scoring takes beside its inputs and its (R,) outputs.

    dim: hidden size. dtype: what is computed in. Counts two logit tiles, an upcast weight slice, an upcast row block
    and the float64 copies behind the targets' logits.
    """
    tile = tile or default_tile(dim)
    in_tiles = 2 * tile.rows * tile.vocab + (tile.vocab + tile.rows) * dim
    return dtype.itemsize * in_tiles + 8 * 3 * max(ROW_MULTIPLE * dim, GATHER_FLOATS)
