"""Whether what an adapter's engine computes is right, and keeps its bits in company: shown on the loaded adapter."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from grpo_client.models.files import UnusableModel
from grpo_client.protocol import FloatArray
from grpo_numerics.checkpoint.names import told
from torch import Tensor

from ..bits import most_tried, same_bits
from ..contract import Piece, PieceScores
from ..forwards import PackedForward
from ..head_pass import score_pieces
from ..heights import spread
from ..probe import check_scores, full_batch, later_turns, probe_pieces
from ..products import Product, changes_bits_at
from .adapter import Adapter
from .base import Base
from .forward import AdaptedForward, Owner
from .products import AtFixedShape, InOne, Pair, Products
from .settings import MERGED

log = logging.getLogger(__name__)

# Tokens of each of two others, where MKL's mode is proof already and a batch that would show more costs too much.
_LEAST_COMPANY = 256


def products_for(base: Base, adapter: Adapter) -> tuple[Products, str | None]:
    """The products that keep the bits of their rows at every height that a part of a stream can have, and why none do."""
    heights = base.ground.heights
    if heights is None:
        return InOne(), None
    parts = heights.parts(base.ground.most)
    tried = spread(parts) if base.ground.trusted else parts
    held = [*adapter.pairs.values(), *(() if adapter.embedding is None else [adapter.embedding])]
    kinds = {(p.down.shape, p.up.shape, p.down.dtype, p.down.device): p for p in held}
    why = None
    for products, of_these in ((InOne(), tried), (AtFixedShape(), spread(parts))):
        why = next((said for kind in kinds.items() if (said := _known(base, products, *kind, of_these))), None)
        if why is None:
            return products, None
    return InOne(), why


def _known(base: Base, products: Products, kind: object, pair: Pair, heights: Sequence[int]) -> str | None:
    """What was found of this kind of pair, which adapters of one base have in common."""
    key = type(products), kind
    if key not in base.known:
        with base.turn:
            base.known[key] = _changes(products, pair, heights)
    return base.known[key]


@torch.inference_mode()
def _changes(products: Products, pair: Pair, heights: Sequence[int]) -> str | None:
    def run(x: Tensor) -> Tensor:
        low = products.down(x[0], pair) if pair.down.shape[0] == pair.up.shape[1] else x[0]
        out = x.new_ones(len(low), pair.up.shape[0])
        products.up(out, low, pair, len(low))
        return out[None]

    rank = pair.up.shape[1]
    inputs = pair.down.shape[1] if pair.down.shape[0] == rank else rank
    name = f"{inputs} to {rank} to {pair.up.shape[0]}"
    height = changes_bits_at(Product(name, run, inputs, pair.up), heights)
    return None if height is None else f"the adapter's product {name} changes the bits of a row at {height} rows"


def _kind(layer: str) -> str:
    """Its name in any layer of the model, and for any expert: not all of those are asked for."""
    return re.sub(r"\d+", "*", layer)


class Trial:
    """Of one adapter. The base serves meanwhile, between two batches."""

    def __init__(self, base: Base, forward: AdaptedForward, adapter: Adapter) -> None:
        self._base, self._forward, self._adapter = base, forward, adapter
        self._max_length = base.hosted.info.max_length
        self._pieces = probe_pieces(base.parts, self._max_length)

    def scores(self) -> list[FloatArray]:
        """Those of the probe's groups, found equal to the base's own forward, sequence by sequence, with the adapter applied.
        Raises UnusableModel when they are not, or when a layer's product is never made."""
        base, adapter, forward = self._base, self._adapter, self._forward
        score = self._scorer(lambda _: adapter)
        with base.turn:
            comparison = check_scores(
                score, base.model, base.parts, self._pieces, base.attention, forward.whole(adapter)
            )
        if silent := {_kind(name) for name in adapter.pairs} - {_kind(name) for name in forward.layers}:
            raise UnusableModel(
                f"the base computes {told(silent)} without calling the layer, so that an adapter of it has no effect; {MERGED}"
            )
        if not comparison.right:
            raise UnusableModel(
                f"scores with the adapter do not reproduce the base's own forward with it: {comparison.note}"
            )
        log.info("scores with the adapter: within %.1e nats of the model itself", comparison.largest)
        return list(comparison.logprobs)

    def keeps_bits(self, alone: Sequence[FloatArray]) -> bool:
        """Whether its scores keep their bits among those of the base and of another adapter, and the base's among its."""
        base, adapter = self._base, self._adapter
        if base.ground.heights is None or not base.hosted.info.bitwise:
            return False
        if not self._forward.packs:
            return same_bits(self._scorer(lambda _: adapter), self._pieces, alone, [], permuted=False)
        stranger = replace(adapter)  # another one to everybody
        others = (None, stranger) if self._forward.takes_base else (stranger, stranger)
        if self._same_among(others, adapter, alone) and (
            not self._forward.takes_base or self._base_keeps_bits(adapter, stranger)
        ):
            return True
        log.warning("scores with this adapter depend on the batch here: `bitwise` is not claimed")
        return False

    def _base_keeps_bits(self, adapter: Adapter, stranger: Adapter) -> bool:
        """The base's rows come first and nothing is added to them: what is seen beside one adapter holds beside all."""
        known, key = self._base.known, "the base beside adapters"
        if key not in known:
            alone = [scores.logprobs for scores in self._scorer(lambda _: None)(self._pieces)]
            known[key] = (
                None if self._same_among((adapter, stranger), None, alone) else "scores changed beside an adapter"
            )
        return known[key] is None

    def _same_among(self, others: tuple[Owner, Owner], mine: Owner, alone: Sequence[FloatArray]) -> bool:
        """Whether the groups, of `mine`, keep their bits behind and among groups of the others, at least one of each."""
        base, ground = self._base, self._base.ground
        shares = isinstance(self._forward.inner, PackedForward) and self._forward.inner.shares
        turns = later_turns(self._pieces, self._max_length) if shares else []
        room = most_tried(ground, base.parts) - sum(p.tokens for p in (*self._pieces, *turns))
        halves = [full_batch(base.parts.vocab_size, self._max_length, max(_LEAST_COMPANY, room // 2)) for _ in others]
        owners = {id(piece): other for other, half in zip(others, halves, strict=True) for piece in half}
        crowd = [piece for both in zip(*halves, strict=True) for piece in both]
        score = self._scorer(lambda piece: owners.get(id(piece), mine))
        return same_bits(score, self._pieces, alone, [*turns, *crowd], permuted=not ground.trusted)

    def _scorer(self, owner: Callable[[Piece], Owner]) -> Callable[[Sequence[Piece]], list[PieceScores]]:
        base, forward = self._base, self._forward

        def score(pieces: Sequence[Piece]) -> list[PieceScores]:
            batch = forward.prepare(pieces, [owner(piece) for piece in pieces])
            with base.turn, torch.inference_mode():
                rows = forward.rows(batch).to(base.parts.weight.device)
                return score_pieces(pieces, rows, batch.questions, base.parts, base.head)

        return score
