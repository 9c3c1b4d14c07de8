"""Batches of a base and its adapters: one stream, in which each adapter's rows are side by side, the base's first.

What sequences have in common is computed once among those of one adapter: under another one the same tokens have other hidden
states. Where the base does not pack, a batch is of one adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from grpo_numerics.model_parts import output_head
from grpo_numerics.packed import Schedule
from torch import Tensor

from ..anatomy import Anatomy
from ..contract import HostedEngine, Piece, Tally
from ..forwards import PackedForward
from ..prepared import Prepared
from .adapter import Adapter
from .applied import Applied, Span, applied
from .base import Base

# None: the base itself
Owner = Adapter | None


@dataclass(frozen=True, slots=True)
class _Batch:
    """laid: as the base's own way laid it out."""

    laid: Any
    spans: Sequence[Span]


class AdaptedForward:
    """The base's way of computing, with the adapters of each batch applied. layers: those that the last forward added to."""

    def __init__(self, base: Base) -> None:
        self.base, self.tier = base, base.forward.tier
        self.inner = copy.copy(base.forward)  # what it notes of a forward is its own
        self.layers: set[str] = set()
        self._compiled = base.compiled

    @property
    def packs(self) -> bool:
        """Whether several adapters share a batch."""
        return isinstance(self.inner, PackedForward)

    @property
    def takes_base(self) -> bool:
        """Whether the base computes the same in a batch with adapters as in one of its own."""
        return self.packs and not self._compiled

    def tally(self) -> Tally:
        """What pieces of one adapter cost together."""
        return self.inner.tally()

    def prepare(
        self, pieces: Sequence[Piece], owners: Sequence[Owner], engines: Sequence[HostedEngine] | None = None
    ) -> Prepared:
        """owners: whose each piece is; one alone unless `packs`. engines: as `Prepared` has them."""
        numbers: dict[Owner, int] = {None: 0}
        mine = [numbers.setdefault(owner, len(numbers)) for owner in owners]
        if isinstance(self.inner, PackedForward):
            laid = self.inner.lay(pieces, mine)
            spans = self._spans(laid.plan.schedule, list(numbers))
        else:
            assert len(set(mine)) <= 1, "pieces of several adapters share no batch here"
            laid = self.inner.lay(pieces)
            spans = [Span(owner) for owner in owners[:1] if owner is not None]
        parts = [self._parts_of(owner) for owner in owners] if any(o and o.head for o in owners) else ()
        return Prepared(pieces, laid.targets, laid.tokens, _Batch(laid.plan, spans), laid.positions, parts, engines)

    def flops(self, batch: Prepared) -> float:
        """Operations of a batch; 0 where those of the base are not known."""
        base = self.base.flops.of(batch)
        plan: _Batch = batch.plan
        ends = [(span, batch.tokens if span.stop is None else span.stop) for span in plan.spans]
        return base and base + sum(span.adapter.flops * (stop - span.start) for span, stop in ends)

    def rows(self, batch: Prepared) -> Tensor:
        """As `Forward.rows`."""
        plan: _Batch = batch.plan
        base, compiled = self.base, self._compiled if plan.spans else ()
        with applied(base.modules, base.embedding, plan.spans, compiled) as done:
            rows = self.inner.run(plan.laid)
        self.layers = done.called
        return rows

    def whole(self, adapter: Adapter) -> AbstractContextManager[Applied]:
        """Inside, the base's own forward, up to its logits, is that of base and adapter."""
        base = self.base
        spans, head = [Span(adapter)], output_head(base.model)
        return applied(base.modules, base.embedding, spans, self._compiled, head)

    def _parts_of(self, owner: Owner) -> Anatomy:
        return self.base.parts if owner is None or owner.head is None else owner.head

    def _spans(self, schedule: Schedule, owners: Sequence[Owner]) -> list[Span]:
        heights = self.inner.heights if isinstance(self.inner, PackedForward) else None
        of = schedule.padded_tokens
        return [
            Span(owner, start, stop, stop - start if heights is None else heights.part(stop - start), of)
            for number, (start, stop) in schedule.layout.spans.items()
            if (owner := owners[number]) is not None
        ]
