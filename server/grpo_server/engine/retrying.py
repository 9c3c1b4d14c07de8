"""A batch that does not fit into memory is tried again in two halves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from grpo_client.protocol import ReferenceInfo

from .contract import BatchScores, HostedEngine, OutOfMemory, Piece
from .device import Device
from .memory import halve, is_out_of_memory
from .prepared import Prepared

log = logging.getLogger(__name__)


class Computes(Protocol):
    """An engine, as far as it is needed here."""

    @property
    def info(self) -> ReferenceInfo: ...

    @property
    def device(self) -> Device: ...

    def prepare(self, pieces: Sequence[Piece], engines: Sequence[HostedEngine] | None = None) -> Prepared: ...

    def compute_whole(self, batch: Prepared) -> BatchScores: ...


def scores_of(engine: Computes, batch: Prepared) -> BatchScores:
    """Score a prepared batch. Out of memory: halve and try again; raises OutOfMemory when one completion does not fit."""
    try:
        return engine.compute_whole(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # outside the handler: the traceback held the tensors that did not fit
    engine.device.release()
    halves = halve(batch.pieces)
    if halves is None:
        raise OutOfMemory("one completion with its prompt does not fit into the memory that is free")
    log.warning("out of memory at %d tokens: trying in two halves", batch.tokens)
    whose, middle = batch.engines, None if halves.cut else len(halves.first)
    of_first, of_second = (None, None) if whose is None else (whose[:middle], whose[middle or 0 :])
    first = scores_of(engine, engine.prepare(halves.first, of_first))
    second = scores_of(engine, engine.prepare(halves.second, of_second))
    return BatchScores(
        halves.join(first.pieces, second.pieces),
        first.computed_tokens + second.computed_tokens,
        engine.info,
        1 + first.splits + second.splits,
        None if whose is None else [one.info for one in whose],
        first.flops + second.flops,
    )
