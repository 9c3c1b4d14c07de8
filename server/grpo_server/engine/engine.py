"""The engine: one frozen reference, token pieces in, scores out. Knows nothing of HTTP, queues or clients.

At load it chooses the best way of sharing prompts that the probe shows to be right for this very model, and claims bitwise
reproducibility only where the probe shows it. `prepare` and `beside` may run on any thread beside `compute`; `compute` and
`replace` belong to one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from grpo_client.models.demo import locate
from grpo_client.models.reading import Reading
from grpo_client.protocol import ReferenceInfo
from grpo_client.tokenizers import TokenizerIdentity
from grpo_numerics import score_rows
from transformers import PreTrainedTokenizerBase

from .adapters.base import Base
from .adapters.engine import AdaptedEngine
from .anatomy import anatomy, media_tokens
from .bits import prepare_ground
from .config import BatchLimits, EngineConfig, mode_on
from .contract import (
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
from .device import Device, device_of
from .fingerprint import fingerprint
from .flops import count_flops
from .head_pass import Head, score_pieces
from .loading import Loaded, load
from .memory import batch_limits
from .mixing import mix
from .own_memory import Tenants
from .precision import pin, require_ieee
from .prepared import Prepared
from .pricing import measure
from .probe import probe_pieces
from .quickest import quickest_head
from .retrying import scores_of
from .room import no_room, weight_bytes
from .saving import save
from .tiers import choose, warm


class TorchEngine:
    """See `contract.Engine` for the contract. `tokenizer` is None when the source has none."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: Loaded,
        head: Head = score_rows,
        on_stage: OnStage = lambda _: None,
        device: Device | None = None,
        before: TorchEngine | None = None,
        turn: threading.RLock | None = None,
    ) -> None:
        """device: another than the one under the model's weights, for tests. before: the one whose place this one will take.
        turn: held for a batch, and by whoever must not compute beside one; shared by the engines of a device."""
        self._given_head, self._given_device = head, device
        # of the first model in this place, for the scheduler goes by them
        self._limits: BatchLimits | None = None if before is None else before.limits
        self._turn = turn or (threading.RLock() if before is None else before._turn)
        self._adopt(config, loaded, on_stage)

    def _adopt(self, config: EngineConfig, loaded: Loaded, on_stage: OnStage) -> None:
        """Take a loaded model into service; nothing of the engine changes unless all of it succeeds."""
        model = loaded.model
        device = self._given_device or device_of(model)
        with Reading(None):  # a model that cannot be taken apart is no better than one that cannot be read
            parts = anatomy(model)
            max_length = min(parts.max_length, config.max_length or parts.max_length)
            mode = mode_on(config.mode, device.type)
            on_stage("probe")
            pin(mode, device.type)
            if mode == "exact":
                require_ieee(device)
            limits = self._limits or batch_limits(config, device, parts.token_bytes)
            flops = count_flops(model, parts, device.cards(), config.peak_tflops)  # before layers are fused
            head = quickest_head(self._given_head, parts) if mode == "fast" else self._given_head
            ground = prepare_ground(mode, parts, head, limits.tokens)
            attention = model.config._attn_implementation or "eager"
            chosen = choose(config, mode, model, parts, max_length, ground)
            rows = ground.heights.of if ground.heights is not None and chosen.forward.tier == "packed" else int
            with self._turn:  # a GPU's account is of all that it computes
                price = measure(chosen.forward, device, parts, max_length, rows)
            if device.compiles:
                warm(chosen, parts, probe_pieces(parts, max_length))
            on_stage("verify")
            identity = fingerprint(model, loaded.tokenizer)
        info = ReferenceInfo(
            model=config.served_name or config.name or config.model,
            fingerprint=identity,
            version=config.version if config.fingerprint in (None, identity) else config.version + 1,
            dtype=str(model.dtype).removeprefix("torch."),
            mode=mode,
            max_length=max_length,
            vocab_size=parts.vocab_size,
            tier=chosen.forward.tier,
            bitwise=chosen.bitwise,
            hidden_size=parts.weight.shape[1] if config.allow_hidden else None,
        )
        self._config, self._model, self._parts, self._device = config, model, parts, device
        self._forward, self._head, self._limits = chosen.forward, chosen.head, limits
        self._price, self._ground, self._attention, self._tenants = price, ground, attention, Tenants(model)
        heads = parts.heads[0] if config.tensor_parallel else None
        self._flops = flops.with_attention(chosen.forward.shapes, heads)
        self._known_products: dict[object, str | None] = {}
        tokens = None if loaded.tokenizer is None else TokenizerIdentity.of(loaded.tokenizer)
        self._hosted = Hosted(info, loaded.tokenizer, media_tokens(model.config), tokens)

    @property
    def hosted(self) -> Hosted:
        """Who answers now."""
        return self._hosted

    @property
    def limits(self) -> BatchLimits:
        """What it takes at a time; of the first model, whichever is hosted."""
        assert self._limits is not None
        return self._limits

    @property
    def peak_flops(self) -> float | None:
        """See `contract.HostedEngine`."""
        return self._flops.peak

    @property
    def info(self) -> ReferenceInfo:
        """The identity of who answers now."""
        return self._hosted.info

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of who answers now."""
        return self._hosted.tokenizer

    def bytes_of(self, piece: Piece) -> int:
        """Peak bytes above the loaded weights for this piece alone: activations of its tokens, its figures, fixed scratch."""
        return self._price.bytes_of(piece)

    def tally(self) -> Tally:
        """What pieces cost together, by what this engine shares between them."""
        return self._forward.tally()

    @property
    def device(self) -> Device:
        """What it computes on."""
        return self._device

    def prepare(self, pieces: Sequence[Piece], engines: Sequence[HostedEngine] | None = None) -> Prepared:
        """Lay the pieces out as one batch; with pieces of its adapters among them, by one of those."""
        if (adapted := next((e for e in engines or () if e is not self), None)) is not None:
            return adapted.prepare(pieces, engines)
        return self._forward.prepare(pieces)

    def compute(self, batch: Prepared) -> BatchScores:
        """See `contract.Engine`. With pieces of its adapters, by the one that prepared it."""
        if batch.engines is not None:
            return next(e for e in batch.engines if e is not self).compute(batch)
        return scores_of(self, batch)

    def compute_whole(self, batch: Prepared) -> BatchScores:
        """Score a prepared batch in one go. Raises whatever torch raises when memory runs out."""
        with self._turn:
            return BatchScores(self._run(batch), batch.tokens, self.info, flops=self._flops.of(batch))

    @torch.inference_mode()
    def _run(self, batch: Prepared) -> list[PieceScores]:
        pin(self.info.mode, self._device.type)
        if not len(batch.targets):
            rows = torch.zeros(0, self._parts.weight.shape[1], device=self._parts.weight.device)
        else:
            rows = self._forward.rows(batch)
        return score_pieces(batch.pieces, rows.to(self._parts.weight.device), batch.questions, self._parts, self._head)

    @property
    def reads_files(self) -> bool:
        """It does."""
        return True

    def no_room_beside(self, source: str) -> str | None:
        """By the headers of the files in `source`, or by the size of the hosted weights where those say nothing."""
        own = sum(p.numel() * p.element_size() for p in self._model.parameters())
        needed = weight_bytes(locate(source), self._model.dtype.itemsize) or own
        return no_room(needed, self._price.full_batch(self.limits.tokens), self._device.free_bytes())

    def beside(self, change: Change, on_stage: OnStage) -> TorchEngine:
        """See `contract.HostedEngine`: the new engine shares nothing with this one but the turns in which they compute."""
        config, loaded = self._read(change, on_stage)
        return TorchEngine(config, loaded, self._given_head, on_stage, self._given_device, before=self)

    def adapt(self, addition: Addition, on_stage: OnStage) -> HostedEngine:
        """See `contract.HostedEngine`."""
        return AdaptedEngine(self._base(), addition, on_stage)

    def shares_batches_with(self, other: HostedEngine) -> bool:
        """With its adapters, as they see it."""
        return other is self or (isinstance(other, AdaptedEngine) and other.shares_batches_with(self))

    def _base(self) -> Base:
        return Base(
            config=self._config,
            model=self._model,
            parts=self._parts,
            hosted=self._hosted,
            forward=self._forward,
            head=self._head,
            ground=self._ground,
            attention=self._attention,
            device=self._device,
            limits=self.limits,
            price=self._price,
            turn=self._turn,
            tenants=self._tenants,
            known=self._known_products,
            flops=self._flops,
        )

    def add(self, addition: Addition, on_stage: OnStage) -> TorchEngine:
        """See `contract.HostedEngine`: what is configured for this one holds for that one, too."""
        on_stage("load")
        config = replace(
            self._config,
            model=addition.source,
            revision=addition.revision,
            served_name=addition.name,
            name=None,
            version=addition.version,
            fingerprint=addition.fingerprint,
            offline=addition.offline,
        )
        loaded = load(config, turn=self._turn)
        return TorchEngine(config, loaded, self._given_head, on_stage, self._given_device, turn=self._turn)

    def replace(self, change: Change, on_stage: OnStage = lambda _: None) -> ReferenceInfo:
        """Host another reference in this engine, which must not compute meanwhile: for whoever uses one without a server.
        The old one stays if the new one cannot be loaded or fails its probe."""
        self._adopt(*self._read(change, on_stage), on_stage)
        return self.info

    def swap(self, source: str, revision: str | None = None) -> ReferenceInfo:
        """`replace` by what is in source."""
        return self.replace(Change(source, revision))

    def mix(self, source: str, decay: float) -> ReferenceInfo:
        """`replace` by decay * hosted + (1 - decay) * source."""
        return self.replace(Change(source, decay=decay))

    def _read(self, change: Change, on_stage: OnStage) -> tuple[EngineConfig, Loaded]:
        """What a change gives: a swap what is in its source, a mix (exponential moving average) the hosted weights moved
        towards it, under the hosted name and with the hosted tokenizer."""
        on_stage("load")
        version = self.info.version + 1 if change.version is None else change.version
        config = replace(
            self._config,
            model=change.source,
            revision=change.revision,
            name=change.name,
            version=version,
            fingerprint=None,
            offline=True,
        )
        loaded = load(config, turn=self._turn)
        if change.decay is None:
            return config, loaded
        mix(self._model, loaded.model, change.decay, change.name or change.source)
        named = replace(self._config, name=self.info.model, version=version, fingerprint=None)
        return named, Loaded(loaded.model, self.tokenizer, loaded.source)

    def save(self, directory: Path) -> None:
        """See `contract.HostedEngine`."""
        save(self._model, self.tokenizer, directory)

    def close(self) -> None:
        """Let go of the weights."""
        self._tenants.leave()
        del self._model, self._parts, self._forward
