"""Which way of sharing prompts serves a model: the best that the probe shows right for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from grpo_client.protocol import FloatArray
from grpo_numerics.model_parts import same_scores
from transformers import PreTrainedModel

from .anatomy import Anatomy
from .bits import Ground, keeps_bits
from .config import EngineConfig, Mode
from .contract import Piece, PieceScores
from .forwards import CachedForward, PackedForward, PlainForward
from .fused_layers import keep_if_right, ways_on
from .head_pass import Head, score_pieces
from .prepared import Forward
from .probe import Comparison, Score, check_scores, every_variant, probe_pieces
from .refusal import refusal

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """How a model is served. bitwise: its scores were seen to keep their bits."""

    forward: Forward
    head: Head
    bitwise: bool


def choose(
    config: EngineConfig, mode: Mode, model: PreTrainedModel, parts: Anatomy, max_length: int, ground: Ground
) -> Choice:
    """The best way that the probe shows right, and whether its scores keep their bits."""
    pieces = probe_pieces(parts, max_length)
    head = ground.head
    own = model.config._attn_implementation or "eager"
    why: list[str] = []
    for make in _candidates(config, mode, ground, parts, max_length):
        forward = make(model, parts, config, own)
        comparison = _try(forward, model, parts, pieces, own, head)
        if comparison.right:
            log.info("scores by the %s path: within %.1e nats of the model itself", forward.tier, comparison.largest)
            score = _scorer(forward, parts, head)
            bitwise = _settle(config, ground, forward, parts, score, pieces, comparison.logprobs, max_length)
            return Choice(forward, head, bitwise)
        log.warning("the %s path is not right for %s: %s", forward.tier, type(model).__name__, comparison.note)
        why.append(f"{forward.tier}: {comparison.note}")
    raise refusal(model, parts, pieces, own, why)


def warm(chosen: Choice, parts: Anatomy, pieces: Sequence[Piece]) -> None:
    """Run every kernel that a question can need once, so that no client waits for a compiler."""
    score = _scorer(chosen.forward, parts, chosen.head)
    for batch in every_variant(pieces, parts.vocab_size):
        score(batch)


def _settle(
    config: EngineConfig,
    ground: Ground,
    forward: Forward,
    parts: Anatomy,
    score: Score,
    pieces: Sequence[Piece],
    seen: Sequence[FloatArray],
    max_length: int,
) -> bool:
    """Fuse the model's layers where its scores stay what they were seen to be, and keep their bits where that is promised.
    Returns whether they keep them. seen: scores of the pieces that were found right."""

    def bitwise(logprobs: Sequence[FloatArray]) -> bool:
        seen_by = ground, forward.tier, parts, score, pieces
        if isinstance(forward, PackedForward) and forward.heights is not None and forward.shares:
            if keeps_bits(*seen_by, logprobs, max_length, shares=True):
                return True
            forward.shares = False  # equal prompts alone, then
            logprobs = [s.logprobs for s in score(pieces)]
        return keeps_bits(*seen_by, logprobs, max_length, shares=False)

    kept = False

    def right() -> bool:
        nonlocal kept
        found = [s.logprobs for s in score(pieces)]
        if isinstance(forward, PackedForward) and forward.calls != parts.attention_layers:
            return False
        if not same_scores(np.concatenate(found), np.concatenate(seen), parts.weight.dtype):
            return False
        kept = bitwise(found)
        return kept or ground.heights is None

    if (
        config.fused_layers
        and not config.tensor_parallel
        and keep_if_right(parts.body, ways_on(parts.device.type), right)
    ):
        return kept
    return bitwise(seen)


def _candidates(config: EngineConfig, mode: Mode, ground: Ground, parts: Anatomy, max_length: int) -> list[Any]:
    if parts.rotary_edge is not None and max_length > parts.rotary_edge:
        log.warning(
            "rotary frequencies of this model depend on a sequence's length beyond %d tokens: sequences are scored one by "
            "one; with --max-length %d prompts are shared",
            parts.rotary_edge,
            parts.rotary_edge,
        )
        return [lambda m, p, c, own: PlainForward(m, p, own, whole=True)]
    tiers: dict[str, Any] = {
        "packed": lambda m, p, c, own: PackedForward(m, p, ground.heights),
        "cache": lambda m, p, c, own: CachedForward(m, p, own),
        "plain": lambda m, p, c, own: PlainForward(m, p, own),
    }
    order = list(tiers)[list(tiers).index(config.tier) :]
    if mode != "fast" and config.tier == "packed" and "cache" in order:
        # sequence by sequence keeps the bits, the cache does not
        order = [t for t in order if t != "cache"] + ["cache"]
    return [tiers[name] for name in order]


def _try(
    forward: Forward, model: PreTrainedModel, parts: Anatomy, pieces: Sequence[Piece], own: str, head: Head
) -> Comparison:
    """A model that the path does not fit may also refuse in its own words: that is an answer, too."""
    try:
        comparison = check_scores(_scorer(forward, parts, head), model, parts, pieces, own)
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError, KeyError) as error:
        model.set_attn_implementation(own)
        return Comparison(False, float("inf"), float("inf"), f"{type(error).__name__}: {error}")
    if isinstance(forward, PackedForward) and forward.calls != parts.attention_layers:
        note = f"{forward.calls} of {parts.attention_layers} layers came through the registered attention"
        return Comparison(False, comparison.largest, comparison.mean, note)
    return comparison


def _scorer(forward: Forward, parts: Anatomy, head: Head) -> Any:
    @torch.inference_mode()
    def score(pieces: Sequence[Piece]) -> list[PieceScores]:
        batch = forward.prepare(pieces)
        return score_pieces(pieces, forward.rows(batch).to(parts.weight.device), batch.questions, parts, head)

    return score
