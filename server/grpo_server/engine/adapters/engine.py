"""The engine of a base with one adapter on it: a reference of its own, whose batches may hold pieces of the base and of other
adapters of it."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from grpo_client.models.reading import Reading
from grpo_client.protocol import ReferenceInfo

from ..config import BatchLimits
from ..contract import (
    Addition,
    BatchScores,
    Change,
    Hosted,
    HostedEngine,
    OnStage,
    Piece,
    PieceScores,
    Tally,
)
from ..device import Device
from ..head_pass import score_pieces
from ..precision import pin
from ..prepared import Prepared
from ..pricing import Price, measure
from ..retrying import scores_of
from ..room import no_room
from .adapter import Adapter
from .base import Base
from .fitting import Fitting
from .forward import AdaptedForward
from .reading import Files, find
from .settings import MERGED
from .trial import Trial, products_for

log = logging.getLogger(__name__)


class AdaptedEngine:
    """See `contract.HostedEngine`. Weights are the base's; what is its own is the adapter."""

    def __init__(self, base: Base, addition: Addition, on_stage: OnStage = lambda _: None) -> None:
        base.tenants.enter()
        try:
            self._adopt(base, addition, on_stage)
        except BaseException:
            base.tenants.leave()
            raise

    def _adopt(self, base: Base, addition: Addition, on_stage: OnStage) -> None:
        on_stage("load")
        files = find(addition.source, addition.revision)
        if (why := _no_room(base, files)) is not None:
            raise ValueError(f"the adapter {addition.name} is not loaded: {why}")
        with Reading(None):  # memory may run out
            adapter = Fitting(base.model, base.parts, files.settings).adapter(files.tensors())
        on_stage("probe")
        pin(base.hosted.info.mode, base.device.type)
        products, obstacle = products_for(base, adapter)
        if obstacle is not None:
            log.warning("scores with this adapter depend on the batch here: `bitwise` is not claimed (%s)", obstacle)
        adapter, forward = replace(adapter, products=products), AdaptedForward(base)
        trial = Trial(base, forward, adapter)
        alone = trial.scores()
        bitwise = obstacle is None and trial.keeps_bits(alone)
        price = self._measured(base, forward, adapter)
        on_stage("verify")
        digest = hashlib.sha256(base.hosted.info.fingerprint.encode() + adapter.digest()).hexdigest()
        version = addition.version if addition.fingerprint in (None, digest) else addition.version + 1
        named = {"model": addition.name, "fingerprint": digest, "version": version, "bitwise": bitwise}
        info = base.hosted.info.model_copy(update=named)
        self._base, self._adapter, self._forward, self._price = base, adapter, forward, price
        self._hosted = replace(base.hosted, info=info, strings={})
        log.info(
            "%s is an adapter of %s: %.1f MB beside it", addition.name, base.hosted.info.model, adapter.nbytes / 1e6
        )

    @staticmethod
    def _measured(base: Base, forward: AdaptedForward, adapter: Adapter) -> Price:
        with base.turn:
            return measure(
                _OneOwner(forward, adapter), base.device, base.parts, base.hosted.info.max_length, base.price.rows
            )

    @property
    def hosted(self) -> Hosted:
        """Who answers."""
        return self._hosted

    @property
    def info(self) -> ReferenceInfo:
        """The identity of who answers."""
        return self._hosted.info

    @property
    def limits(self) -> BatchLimits:
        """The base's."""
        return self._base.limits

    @property
    def peak_flops(self) -> float | None:
        """The base's."""
        return self._base.flops.peak

    @property
    def device(self) -> Device:
        """The base's."""
        return self._base.device

    @property
    def nbytes(self) -> int:
        """What it holds beside the base."""
        return self._adapter.nbytes

    def bytes_of(self, piece: Piece) -> int:
        """As the base's, with what the adapter's products take beside."""
        return self._price.bytes_of(piece)

    def tally(self) -> Tally:
        """What pieces of this adapter cost together."""
        return self._forward.tally()

    def shares_batches_with(self, other: HostedEngine) -> bool:
        """With the adapters of its base, and with the base itself unless its layers are compiled."""
        if other is self:
            return True
        if not self._forward.packs:
            return False
        if isinstance(other, AdaptedEngine):
            return other._base.model is self._base.model
        return other.hosted is self._base.hosted and self._forward.takes_base

    def prepare(self, pieces: Sequence[Piece], engines: Sequence[HostedEngine] | None = None) -> Prepared:
        """See `contract.Engine`."""
        if engines is None:
            return self._forward.prepare(pieces, [self._adapter] * len(pieces))
        owners = [e._adapter if isinstance(e, AdaptedEngine) else None for e in engines]
        return self._forward.prepare(pieces, owners, engines)

    def compute(self, batch: Prepared) -> BatchScores:
        """See `contract.Engine`."""
        return scores_of(self, batch)

    def compute_whole(self, batch: Prepared) -> BatchScores:
        """Score a prepared batch in one go. Raises whatever torch raises when memory runs out."""
        with self._base.turn:
            scores = self._run(batch)
        references = None if batch.engines is None else [engine.info for engine in batch.engines]
        return BatchScores(scores, batch.tokens, self.info, references=references, flops=self._forward.flops(batch))

    @torch.inference_mode()
    def _run(self, batch: Prepared) -> list[PieceScores]:
        base = self._base
        pin(self.info.mode, base.device.type)
        weight = base.parts.weight
        if len(batch.targets):
            rows = self._forward.rows(batch).to(weight.device)
        else:
            rows = torch.zeros(0, weight.shape[1], device=weight.device)
        return score_pieces(batch.pieces, rows, batch.questions, base.parts, base.head)

    @property
    def reads_files(self) -> bool:
        """It does."""
        return True

    def no_room_beside(self, source: str) -> str | None:
        """Of another adapter, by the header of its file."""
        return _no_room(self._base, find(source))

    def adapt(self, addition: Addition, on_stage: OnStage) -> AdaptedEngine:
        """Another adapter on the same base."""
        return AdaptedEngine(self._base, addition, on_stage)

    def add(self, addition: Addition, on_stage: OnStage) -> HostedEngine:
        """Refused: a further model comes up beside a whole one."""
        raise ValueError("a further model comes up beside a model, and this is an adapter on one")

    def beside(self, change: Change, on_stage: OnStage) -> AdaptedEngine:
        """Another adapter on the same base in place of this one, under its name."""
        if change.decay is not None:
            raise ValueError(
                f"model: {self.info.model} is an adapter, and the average of two adapters is not that of their products; "
                f"swap it, or {MERGED}"
            )
        version = self.info.version + 1 if change.version is None else change.version
        asked = Addition(change.source, self.info.model, change.revision, version)  # whatever the source is called
        return AdaptedEngine(self._base, asked, on_stage)

    def save(self, directory: Path) -> None:
        """Refused: its owner has base and adapter, and starts with them."""
        raise ValueError(
            "a reference of base model and adapter cannot be kept: merge them, save that, and mix into what was saved"
        )

    def close(self) -> None:
        """Let go of the adapter, and of the base's weights if nobody else has them."""
        base = self._base
        del self._forward, self._adapter
        base.tenants.leave()


class _OneOwner:
    """Batches of one adapter."""

    def __init__(self, forward: AdaptedForward, adapter: Adapter) -> None:
        self._forward, self._adapter = forward, adapter

    def prepare(self, pieces: Sequence[Piece]) -> Prepared:
        return self._forward.prepare(pieces, [self._adapter] * len(pieces))

    def rows(self, batch: Prepared) -> torch.Tensor:
        return self._forward.rows(batch)


def _no_room(base: Base, files: Files) -> str | None:
    """By the header of its file; a pair on the output head makes a whole one."""
    shapes, (vocab, hidden) = files.shapes(), base.parts.weight.shape
    numbers = sum(map(math.prod, shapes.values()))
    if any(name.endswith(".lora_B.weight") and shape[0] == vocab for name, shape in shapes.items()):
        numbers += vocab * hidden
    needed = numbers * base.model.dtype.itemsize
    return no_room(needed, base.price.full_batch(base.limits.tokens), base.device.free_bytes())
