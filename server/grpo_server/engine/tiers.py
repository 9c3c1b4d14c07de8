"""Which way of sharing prompts serves a model: the best that the probe shows right for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from grpo_numerics import HeadScores
from transformers import PreTrainedModel

from .anatomy import Anatomy
from .bits import keeps_bits
from .config import EngineConfig
from .contract import Piece, PieceScores
from .forwards import CachedForward, Forward, PackedForward, PlainForward
from .head_pass import score_pieces
from .probe import Comparison, check_scores, probe_pieces
from .refusal import refusal

log = logging.getLogger(__name__)

Head = Callable[..., HeadScores]  # `grpo_numerics.score_rows`, or the same over several processes


def choose(
    config: EngineConfig, model: PreTrainedModel, parts: Anatomy, max_length: int, head: Head
) -> tuple[Forward, bool]:
    """The best forward that the probe shows right, and whether its scores keep their bits."""
    pieces = probe_pieces(parts, max_length)
    own = model.config._attn_implementation or "eager"
    why: list[str] = []
    for make in _candidates(config, parts, max_length):
        forward = make(model, parts, config, own)
        comparison = _try(forward, model, parts, pieces, own, head)
        if comparison.right:
            log.info("scores by the %s path: within %.1e nats of the model itself", forward.tier, comparison.largest)
            return forward, keeps_bits(config, parts, _scorer(forward, parts, head), pieces, comparison.logprobs)
        log.warning("the %s path is not right for %s: %s", forward.tier, type(model).__name__, comparison.note)
        why.append(f"{forward.tier}: {comparison.note}")
    raise refusal(model, parts, pieces, own, why)


def _candidates(config: EngineConfig, parts: Anatomy, max_length: int) -> list[Any]:
    if parts.rotary_edge is not None and max_length > parts.rotary_edge:
        log.warning(
            "rotary frequencies of this model depend on a sequence's length beyond %d tokens: sequences are scored one by "
            "one; with --max-length %d prompts are shared",
            parts.rotary_edge,
            parts.rotary_edge,
        )
        return [lambda m, p, c, own: PlainForward(m, p, own, whole=True)]
    tiers: dict[str, Any] = {
        "packed": lambda m, p, c, own: PackedForward(m, p, c.mode == "exact", c.batch_rows),
        "cache": lambda m, p, c, own: CachedForward(m, p, own),
        "plain": lambda m, p, c, own: PlainForward(m, p, own),
    }
    order = list(tiers)[list(tiers).index(config.tier) :]
    if config.mode == "exact" and config.tier == "packed" and "cache" in order:
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
        return score_pieces(pieces, forward.rows(batch).to(parts.weight.device), batch.targets, parts, head)

    return score
