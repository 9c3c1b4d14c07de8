"""Hidden states of the predicting rows, three ways: from a prefix tree without padding, down to the model as it comes.

packed   one flat stream, our attention; what sequences begin with in common is computed once (most models)
cache    prompt once into a key-value cache, repeated per completion (attention of the model's own)
plain    every sequence by itself                                    (states that cannot be repeated)

All answer the same question in the same order; the probe says which of them is right for a model. `prepare` is index
arithmetic and may run beside `rows`, which is the forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from grpo_client.masking import Mask
from grpo_numerics.model_parts import fresh_rotary
from grpo_numerics.packed import (
    NAME,
    PackedLayout,
    Schedule,
    Shape,
    attention_forward,
    packed_stream,
    stream_inputs,
)
from grpo_numerics.packed.tree import Ask
from grpo_numerics.packed.tree.choice import on_triton
from grpo_numerics.transfer import Parcel
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from .anatomy import Anatomy
from .config import Tier
from .contract import Piece, Tally
from .heights import Heights
from .prepared import Laid, Prepared
from .quickest import stacked_attention
from .tallies import Beginnings, EqualPrompts, EveryPiece


@dataclass(frozen=True, slots=True)
class _Stream:
    """A packed batch, and the rows in it that predict what is asked."""

    schedule: Schedule
    predicting: Parcel[str]


class PackedForward:
    """One stream for all pieces. heights: scheduled so that a row's bits do not depend on the batch, with one of these numbers
    of rows; None: as many rows as there are tokens.

    shares: whatever sequences begin with in common is computed once. With heights only where attention gives a row the same
    bits however its sequence is cut; elsewhere equal prompts alone are shared: the cut then depends on the sequence alone.
    """

    tier: Tier = "packed"

    def __init__(self, model: PreTrainedModel, parts: Anatomy, heights: Heights | None) -> None:
        AttentionInterface.register(NAME, attention_forward)
        self.model, self.parts, self.heights = model, parts, heights
        # of the thread that computes, which makes this object; `prepare` runs on another
        self.threads = torch.get_num_threads() if parts.device.type == "cpu" else 1
        self.stacked = heights is None and stacked_attention(parts)
        self.shares = heights is None or heeds_positions_alone(parts)
        self.calls = 0  # of attention in the last forward: the probe wants one per layer
        self.asked: frozenset[Ask] = frozenset()  # tables that its layers asked for
        self.shapes: tuple[Shape, ...] = ()

    def tally(self) -> Tally:
        return Beginnings() if self.shares else EqualPrompts()

    def prepare(self, pieces: Sequence[Piece]) -> Prepared:
        return Prepared(pieces, *self.lay(pieces))

    def rows(self, batch: Prepared) -> Tensor:
        return self.run(batch.plan)

    def lay(self, pieces: Sequence[Piece], owners: Sequence[int] | None = None) -> Laid:
        """owners: as `PackedLayout.build` has them, of each piece."""
        needed = [p.needed(whole=not self.shares) for p in pieces]
        wanted = [p.completions if any(len(c) for c in p.completions) else () for p in needed]
        used = [i for i, completions in enumerate(wanted) if completions]
        layout = PackedLayout.build(
            [pieces[i].prompt for i in used],
            [wanted[i] for i in used],
            share_prefixes=self.shares,
            owners=None if owners is None else [owners[i] for i in used],
        )
        schedule = Schedule(
            layout,
            self.parts.device,
            exact=self.heights is not None,
            rows=1 if self.heights is None else self.heights.step(layout.tokens),
            widths=self.parts.widths,
            threads=self.threads,
            stacked=self.stacked,
        )
        schedule.ahead(self.asked)
        asked = _asked(needed)
        stream = _Stream(schedule, Parcel({"rows": layout.predict_rows[asked]}))
        return Laid(layout.targets[asked], layout.tokens, stream, layout.positions)

    def run(self, plan: Any) -> Tensor:
        stream: _Stream = plan
        schedule = stream.schedule
        if self.model.config._attn_implementation != NAME:
            self.model.set_attn_implementation(NAME)
        with packed_stream(schedule, shapes=not self.shapes) as calls:
            hidden = self.parts.body(**stream_inputs(schedule), use_cache=False).last_hidden_state[0]
        self.calls, self.asked = calls.count, schedule.plan.asked
        self.shapes = self.shapes or tuple(calls.shapes or ())
        return hidden[stream.predicting.on(hidden.device)["rows"]]


def heeds_positions_alone(parts: Anatomy) -> bool:
    """Whether attention over heads like the first layer's goes by the position of a key in its sequence, and not by where the
    sequence is cut: the tree kernels do. That the other layers agree is for the probe to see (`bits`)."""
    heads, kv_heads, dim = parts.heads
    q, k = (torch.empty(n, 1, dim, dtype=parts.weight.dtype, device=parts.device) for n in (heads, kv_heads))
    return on_triton(q, k, k)


class _OwnAttention:
    """What the tiers share that leave the model's attention alone."""

    tier: Tier
    shapes: tuple[Shape, ...] = ()

    def __init__(self, model: PreTrainedModel, parts: Anatomy, attention: str) -> None:
        self.model, self.parts, self.attention = model, parts, attention

    def tally(self) -> Tally:
        return EveryPiece()

    def prepare(self, pieces: Sequence[Piece]) -> Prepared:
        return Prepared(pieces, *self.lay(pieces))

    def rows(self, batch: Prepared) -> Tensor:
        return self.run(batch.plan)

    def lay(self, pieces: Sequence[Piece]) -> Laid:
        needed = [p.needed(whole=True) for p in pieces]
        used = [p for p in needed if any(len(c) for c in p.completions)]
        targets = np.concatenate([np.zeros(0, np.int32), *(c for p in used for c in p.completions)])
        return Laid(targets[_asked(used)], sum(map(self._tokens, used)), used)

    def _tokens(self, piece: Piece) -> int:
        return sum(len(piece.prompt) + len(c) - 1 for c in piece.completions if len(c))

    def run(self, plan: Any) -> Tensor:
        if self.model.config._attn_implementation != self.attention:
            self.model.set_attn_implementation(self.attention)
        used: list[Piece] = plan
        return torch.cat([self._of(p) if p.completion_mask is None else self._of(p)[self._index(p)] for p in used])

    def _index(self, piece: Piece) -> Tensor:
        return torch.from_numpy(np.flatnonzero(piece.asked)).to(self.parts.device)

    def _of(self, piece: Piece) -> Tensor:
        raise AssertionError("each tier has its own")


class CachedForward(_OwnAttention):
    """Each prompt once into a cache, the cache repeated for the completions, these right-padded behind it."""

    tier: Tier = "cache"

    def _tokens(self, piece: Piece) -> int:
        longest = max(len(c) for c in piece.completions) - 1
        return len(piece.prompt) + longest * sum(len(c) > 1 for c in piece.completions)

    def _of(self, piece: Piece) -> Tensor:
        device = self.parts.device
        prompt = _ids(piece.prompt).to(device)
        cache = DynamicCache(config=self.model.config)
        # all that can follow the prompt is seen by nobody who needs more than its last row
        last = self.parts.body(input_ids=prompt[None], past_key_values=cache, use_cache=True).last_hidden_state[0, -1:]
        longer = [c for c in piece.completions if len(c) > 1]
        if not longer:
            return last.expand(sum(len(c) > 0 for c in piece.completions), -1)
        width = max(len(c) for c in longer) - 1
        ids = torch.zeros(len(longer), width, dtype=torch.int64)
        mask = torch.zeros(len(longer), len(prompt) + width, dtype=torch.int64)
        for i, completion in enumerate(longer):
            ids[i, : len(completion) - 1] = _ids(completion)[:-1]
            mask[i, : len(prompt) + len(completion) - 1] = 1
        cache.batch_repeat_interleave(len(longer))
        positions = torch.arange(len(prompt), len(prompt) + width, device=device)[None].expand(len(longer), -1)
        hidden = self.parts.body(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        own = iter(hidden)
        return torch.cat(
            [last if len(c) == 1 else torch.cat([last, next(own)[: len(c) - 1]]) for c in piece.completions if len(c)]
        )


class PlainForward(_OwnAttention):
    """Every sequence by itself: nothing is shared, nothing is padded. whole: its last token, too, which predicts nothing that
    is asked for but counts where rotary frequencies depend on the length; they then start as they were at load."""

    tier: Tier = "plain"

    def __init__(self, model: PreTrainedModel, parts: Anatomy, attention: str, whole: bool = False) -> None:
        super().__init__(model, parts, attention)
        self.whole = whole

    def _of(self, piece: Piece) -> Tensor:
        return torch.cat([self._sequence(piece, _ids(c)) for c in piece.completions if len(c)])

    def _sequence(self, piece: Piece, completion: Tensor) -> Tensor:
        ids = torch.cat([_ids(piece.prompt), completion if self.whole else completion[:-1]])[None].to(self.parts.device)
        if self.whole:
            fresh_rotary(self.model)
        hidden = self.parts.body(input_ids=ids, use_cache=False).last_hidden_state[0]
        return hidden[len(piece.prompt) - 1 :][: len(completion)]


def _asked(pieces: Sequence[Piece]) -> Mask:
    """(N,) over the completion tokens of all."""
    return np.concatenate([np.zeros(0, dtype=np.bool_), *(p.asked for p in pieces)])


def _ids(tokens: Any) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))  # a copy: what came over the wire may not be written to
