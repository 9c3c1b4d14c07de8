"""What scoring a piece will take in memory above the weights: known before it runs, from what a small forward was seen to take.

A forward's peak grows with the rows of the stream, and where attention holds scores (soft-caps, windows) with the square of
the longest sequence: both factors are measured at load, on the very model, by the device's own account. The head's peak follows
from its tiles. The two do not meet: the layers' tensors are gone when the head begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from grpo_client.protocol import HIDDEN
from grpo_numerics import default_tile
from grpo_numerics.head.best import best_bytes
from grpo_numerics.head.spec import GATHER_FLOATS, ROW_MULTIPLE, VOCAB_MULTIPLE

from .anatomy import Anatomy
from .contract import Piece
from .device import Device
from .prepared import Prepared, Runs

_SHORT, _LONG = 8, 192  # tokens of the sequences that are measured
# Bytes of one number, in bfloat16, float32, int64 and float64; and a row's running sums, targets and scores in the head.
_HALF, _FLOAT, _INT, _DOUBLE, _ROW = 2, 4, 8, 8, 64
# No attention holds more scores than this at a time, in all their copies.
_SCORES_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Price:
    """rows: of the stream for so many tokens. row_bytes, square_bytes: a forward's peak by row, and by the longest sequence
    squared."""

    rows: Callable[[int], int]
    row_bytes: float
    square_bytes: float
    parts: Anatomy

    def full_batch(self, tokens: int) -> int:
        """Peak bytes above the weights for a batch of so many tokens, none of them in a long sequence."""
        return int(self.rows(tokens) * self.row_bytes)

    def bytes_of(self, piece: Piece) -> int:
        """Peak bytes above the weights for this piece alone."""
        wanted = piece.asked_tokens
        longest = len(piece.prompt) + max((len(c) for c in piece.completions), default=0)
        body = self.rows(piece.tokens) * self.row_bytes + min(self.square_bytes * longest**2, _SCORES_BYTES)
        return max(int(body), head_bytes(piece, wanted, self.parts))


def head_bytes(piece: Piece, wanted: int, parts: Anatomy) -> int:
    """Peak of the head over so many rows, their hidden states included."""
    vocab, dim = parts.weight.shape
    tile = default_tile(dim)
    tiles = _up(vocab, tile.vocab) // tile.vocab
    width = _up(_up(vocab, tiles) // tiles, VOCAB_MULTIPLE)
    block = min(_up(wanted, ROW_MULTIPLE), tile.rows)
    element = parts.weight.element_size()
    logits = (
        1
        + bool(piece.extras & {"entropy", "rank"} or piece.normalizer == "stablemax")
        + (piece.top_k > 0 and tiles > 1)
        + ("tail" in piece.extras)  # a copy without those that are told by themselves
    )
    upcast = (width + block) * dim * _FLOAT if element < _FLOAT else 0
    gathered = 3 * min(block * dim, max(ROW_MULTIPLE * dim, GATHER_FLOATS)) * _DOUBLE
    asked = 0 if piece.token_ids is None else next((ids.shape[1] for ids in piece.token_ids if ids.size), 0)
    kept = (_FLOAT + _INT) * (piece.top_k + asked)
    in_tiles = upcast + logits * block * width * _FLOAT + block * 3 * _INT * asked
    if piece.top_k:
        on_cpu = parts.weight.device.type == "cpu"
        in_tiles += best_bytes(block, width, piece.top_k) if on_cpu else block * (_FLOAT + _INT) * piece.top_k
    in_tiles = max(in_tiles, gathered)
    given = _HALF * dim if HIDDEN in piece.extras else 0
    return wanted * (dim * element + _ROW + kept + given) + in_tiles


@torch.inference_mode()
def measure(forward: Runs, device: Device, parts: Anatomy, max_length: int, rows: Callable[[int], int]) -> Price:
    """Run a batch of short sequences and a long one, and see what they take."""
    short = _batch(forward, parts, min(_SHORT, max_length // 2), 24)
    row_bytes = device.peak(lambda: forward.rows(short)) / rows(short.tokens)
    longest = min(_LONG, max_length // 2)
    long = _batch(forward, parts, longest, 1)
    beyond = device.peak(lambda: forward.rows(long)) - row_bytes * rows(long.tokens)
    # what a row takes by itself was seen to differ by less than this
    square_bytes = beyond / (2 * longest) ** 2 if beyond > 0.02 * row_bytes * rows(long.tokens) else 0.0
    return Price(rows, row_bytes, square_bytes, parts)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _batch(forward: Runs, parts: Anatomy, length: int, groups: int) -> Prepared:
    rng = np.random.default_rng(length)
    half = max(1, length)
    return forward.prepare(
        [
            Piece(
                rng.integers(0, parts.vocab_size, half, np.int32),
                (rng.integers(0, parts.vocab_size, half, np.int32),),
                1.0,
            )
            for _ in range(groups)
        ]
    )
