"""The start-up probe: whether what is about to be served is right, shown on the loaded model before the first request.

Two questions, and a claim is made only where the answer is yes.

    Does a way of sharing prompts give the scores of the model's own forward, sequence by sequence, own head included?
    Does the score of a sequence keep its bits alone, in company, in another order?

Random tokens serve: a wrong mask or position moves them by tenths of a nat, re-ordered fp32 sums by 1e-5.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from grpo_client.protocol import FloatArray
from transformers import PreTrainedModel

from .anatomy import Anatomy
from .work import Piece, PieceScores

log = logging.getLogger(__name__)

# Largest |difference| in nats that counts as the same score. Half-precision bodies differ from themselves by more.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_MEAN = 0.08
_SEED = 20501
# A window longer than this is not exercised at start-up: the probe would take minutes.
_LONGEST_PROBE = 640

Score = Callable[[Sequence[Piece]], list[PieceScores]]


@dataclass(frozen=True, slots=True)
class Finding:
    """right: within tolerance. largest, mean: |difference| in nats. note: why not, when not."""

    right: bool
    largest: float
    mean: float
    note: str = ""


def probe_pieces(parts: Anatomy, window: int, max_length: int) -> list[Piece]:
    """Groups that touch every path: ragged, a one-token prompt, nested and shared prompts, an empty completion; past the
    sliding window (0: none) where that is affordable."""
    rng = np.random.default_rng(_SEED)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(0, parts.vocab_size, n, dtype=np.int32)

    long = window + 24 if window and window + 24 <= _LONGEST_PROBE else 48
    long = max(2, min(long, max_length - 24))
    stem = tokens(long)
    turn = min(20, long)
    groups = [
        (stem, [tokens(9), tokens(1), tokens(0), tokens(17)]),
        (stem[:1], [tokens(5), tokens(5)]),
        (stem[:turn], [tokens(4)]),
        (np.concatenate([stem[:turn], tokens(7)]), [tokens(6), tokens(3)]),
        (stem, [tokens(2)]),
    ]
    return [Piece(p, tuple(c), temperature=1.0) for p, c in groups if len(p) < max_length]


def check_scores(score: Score, model: PreTrainedModel, parts: Anatomy, pieces: Sequence[Piece], eager: str) -> Finding:
    """Compare `score` with `model` itself, one unpadded sequence at a time, attention implementation `eager`."""
    ours = score(pieces)
    model.set_attn_implementation(eager)
    differences = [
        np.abs(mine - _own_logprobs(model, parts, piece))
        for mine, piece in zip((s.logprobs for s in ours), pieces, strict=True)
    ]
    flat = np.concatenate(differences)
    largest, mean = float(flat.max()), float(flat.mean())
    dtype = parts.weight.dtype
    right = largest <= _TOLERANCE[dtype] if dtype in _TOLERANCE else mean <= _HALF_MEAN
    return Finding(bool(right), largest, mean, "" if right else f"off by up to {largest:.2g} nats (mean {mean:.2g})")


def check_bits(score: Score, pieces: Sequence[Piece]) -> bool:
    """Whether every completion keeps its bits: the batch, its reverse, each group alone, each completion alone."""
    together = {id(p): s.logprobs for p, s in zip(pieces, score(pieces), strict=True)}
    backwards = list(reversed(pieces))
    for piece, scores in zip(backwards, score(backwards), strict=True):
        if not np.array_equal(together[id(piece)], scores.logprobs):
            return False
    for piece in pieces:
        [alone] = score([piece])
        singles = [
            score([Piece(piece.prompt, (c,), piece.temperature)])[0].logprobs for c in piece.completions if len(c)
        ]
        whole = together[id(piece)]
        if not np.array_equal(whole, alone.logprobs) or not np.array_equal(whole, np.concatenate(singles)):
            return False
    return True


@torch.inference_mode()
def _own_logprobs(model: PreTrainedModel, parts: Anatomy, piece: Piece) -> FloatArray:
    """(N,) by the model's own forward and head, normalised in float64."""
    rows: list[np.ndarray] = []
    for completion in piece.completions:
        if len(completion) == 0:
            continue
        ids = torch.from_numpy(np.concatenate([piece.prompt, completion])).long()[None].to(parts.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(piece.prompt) - 1 : -1].double()
        targets = torch.from_numpy(completion).long().to(logits.device)
        rows.append(torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0].cpu().numpy())
    return np.concatenate(rows).astype(np.float32)
