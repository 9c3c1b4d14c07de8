"""The start-up probe: whether what is about to be served is right, shown on the loaded model before the first request.

The question: does a way of sharing prompts give the scores of the model's own forward, sequence by sequence, own head included?
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from grpo_client.protocol import EXTRAS, NORMALIZERS, FloatArray
from grpo_numerics.model_parts import fresh_rotary, same_scores, trial_groups
from transformers import PreTrainedModel

from .anatomy import Anatomy
from .contract import Piece, PieceScores

log = logging.getLogger(__name__)


Score = Callable[[Sequence[Piece]], list[PieceScores]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """right: within tolerance. largest, mean: |difference| in nats. note: why not, when not. logprobs: what was found to be
    right, piece by piece."""

    right: bool
    largest: float
    mean: float
    note: str = ""
    logprobs: Sequence[FloatArray] = ()


def probe_pieces(parts: Anatomy, max_length: int) -> list[Piece]:
    """The groups of `trial_groups` for this model."""
    groups = trial_groups(parts.vocab_size, max_length, parts.window, parts.rotary_edge)
    return [Piece(prompt, tuple(completions), temperature=1.0) for prompt, completions in groups]


def full_batch(vocab_size: int, max_length: int, tokens: int) -> list[Piece]:
    """Groups of random tokens that together fill a batch of so many tokens. Of few lengths, so that attention takes them in few
    calls; half of the prompts begin with the first token of the vocabulary and half with the last, so that they come before
    and after others wherever prompts are sorted."""
    rng = np.random.default_rng(tokens & 0xFFFF)
    prompt = max(1, min(192, max_length // 2))
    length = max(1, min(64, max_length - prompt))
    groups: list[Piece] = []
    while tokens >= prompt + length:
        first = 0 if len(groups) % 2 == 0 else vocab_size - 1
        ids = rng.integers(0, vocab_size, prompt, dtype=np.int32)
        ids[0] = first
        count = min(8, (tokens - prompt) // length)
        completions = tuple(rng.integers(0, vocab_size, (count, length), dtype=np.int32))
        groups.append(Piece(ids, completions, temperature=1.0))
        tokens -= groups[-1].tokens
    return groups


def later_turns(pieces: Sequence[Piece], max_length: int) -> list[Piece]:
    """What could follow the pieces: prompts that go on from each one's last completion, and from the middle of it."""
    turns: list[Piece] = []
    for piece in pieces:
        last = piece.completions[-1]
        for length in sorted({len(last) // 2, len(last)} - {0}):
            prompt = np.concatenate([piece.prompt, last[:length], piece.prompt[:3]])
            if len(prompt) + 2 <= max_length:
                turns.append(Piece(prompt, (piece.prompt[:1].repeat(2), last[:1]), piece.temperature))
    return turns


def every_variant(pieces: Sequence[Piece], vocab_size: int) -> list[list[Piece]]:
    """Batches that together need every kernel of attention and head: both normalizers, temperatures, extras, top-k, asked ids,
    one by one and all at once, over short sequences and long ones."""
    asked = [
        replace(p, token_ids=tuple(np.full((len(c), 2), vocab_size - 1, np.int32) for c in p.completions))
        for p in pieces
    ]
    best, everything = min(8, vocab_size), frozenset(EXTRAS)
    tail = everything & {"tail"}  # comes beside the best and asked ids alone
    return [
        list(variant)
        for normalizer in NORMALIZERS
        for variant in (
            [replace(p, normalizer=normalizer) for p in pieces],
            [replace(p, normalizer=normalizer, temperature=0.7) for p in pieces],
            *(
                [replace(p, normalizer=normalizer, extras=frozenset({extra})) for p in pieces]
                for extra in sorted(everything - tail)
            ),
            [replace(p, normalizer=normalizer, extras=tail, top_k=best) for p in pieces],
            [replace(p, normalizer=normalizer, extras=tail) for p in asked],
            [replace(p, normalizer=normalizer, top_k=best) for p in pieces],
            [replace(p, normalizer=normalizer) for p in asked],
            [replace(p, normalizer=normalizer, temperature=0.7, extras=everything, top_k=best) for p in asked],
        )
    ]


def check_scores(
    score: Score,
    model: PreTrainedModel,
    parts: Anatomy,
    pieces: Sequence[Piece],
    eager: str,
    within: AbstractContextManager[object] | None = None,
) -> Comparison:
    """Compare `score` with `model` itself, one unpadded sequence at a time, attention implementation `eager`. within: entered
    around the model's own forwards."""
    logprobs = [scores.logprobs for scores in score(pieces)]
    ours = np.concatenate(logprobs)
    model.set_attn_implementation(eager)
    with within or nullcontext():
        truth = np.concatenate([_own_logprobs(model, parts, piece) for piece in pieces])
    differences = np.abs(ours - truth)
    largest, mean = float(differences.max()), float(differences.mean())
    right = same_scores(ours, truth, parts.weight.dtype)
    note = "" if right else f"off by up to {largest:.2g} nats (mean {mean:.2g})"
    return Comparison(right, largest, mean, note, logprobs)


@torch.inference_mode()
def _own_logprobs(model: PreTrainedModel, parts: Anatomy, piece: Piece) -> FloatArray:
    """(N,) by the model's own forward and head, normalised in float64."""
    rows: list[np.ndarray] = []
    for completion in piece.completions:
        if len(completion) == 0:
            continue
        ids = torch.from_numpy(np.concatenate([piece.prompt, completion])).long()[None].to(parts.device)
        if parts.rotary_edge is not None:
            fresh_rotary(model)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(piece.prompt) - 1 : -1].double()
        targets = torch.from_numpy(completion).long().to(logits.device)
        rows.append(torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0].cpu().numpy())
    return np.concatenate(rows).astype(np.float32)
