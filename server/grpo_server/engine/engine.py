"""The engine: one frozen reference, token pieces in, scores out. Knows nothing of HTTP, queues or clients.

At load it chooses the best way of sharing prompts that the probe shows to be right for this very model, and claims bitwise
reproducibility only where the probe shows it. `prepare` may run on any thread beside `compute`; `compute`, `swap` and `mix`
belong to one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from grpo_client.models.reading import Reading
from grpo_client.protocol import ReferenceInfo
from grpo_numerics import score_rows
from transformers import PreTrainedTokenizerBase

from .anatomy import anatomy, media_tokens
from .bits import prepare_ground
from .config import BatchLimits, EngineConfig, mode_on
from .contract import BatchScores, Hosted, OutOfMemory, Piece, PieceScores, Tally
from .device import Device, device_of
from .fingerprint import fingerprint
from .forwards import Prepared
from .head_pass import Head, score_pieces
from .loading import Loaded, load
from .memory import batch_limits, halve, is_out_of_memory
from .mixing import check_mixable
from .precision import pin, require_ieee
from .pricing import measure
from .probe import probe_pieces
from .quickest import quickest_head
from .tiers import choose, warm

log = logging.getLogger(__name__)

OnStage = Callable[[str], None]  # told "load", "probe", "verify" as each begins, at a start and at a swap


class TorchEngine:
    """See `contract.Engine` for the contract. `tokenizer` is None when the source has none."""

    def __init__(
        self,
        config: EngineConfig,
        loaded: Loaded,
        head: Head = score_rows,
        on_stage: OnStage = lambda _: None,
        device: Device | None = None,
    ) -> None:
        """device: another than the one under the model's weights, for tests."""
        self._config, self._given_head, self._given_device = config, head, device
        self._on_stage = on_stage
        self._limits: BatchLimits | None = None  # of the first model, for the scheduler is told once
        self._adopt(loaded, config.served_name or config.model, version=1)

    def _adopt(self, loaded: Loaded, name: str, version: int) -> None:
        """Take a loaded model into service; nothing of the engine changes unless all of it succeeds."""
        model = loaded.model
        device = self._given_device or device_of(model)
        with Reading(None):  # a model that cannot be taken apart is no better than one that cannot be read
            parts = anatomy(model)
            max_length = min(parts.max_length, self._config.max_length or parts.max_length)
            mode = mode_on(self._config.mode, device.type)
            self._on_stage("probe")
            pin(mode, device.type)
            if mode == "exact":
                require_ieee(device)
            limits = self._limits or batch_limits(self._config, device, parts.token_bytes)
            head = quickest_head(self._given_head, parts) if mode == "fast" else self._given_head
            ground = prepare_ground(mode, parts, head, limits.tokens)
            chosen = choose(self._config, mode, model, parts, max_length, ground)
            rows = ground.heights.of if ground.heights is not None and chosen.forward.tier == "packed" else int
            price = measure(chosen.forward, device, parts, max_length, rows)
            if device.compiles:
                warm(chosen, parts, probe_pieces(parts, max_length))
            self._on_stage("verify")
            identity = fingerprint(model, loaded.tokenizer)
        info = ReferenceInfo(
            model=name,
            fingerprint=identity,
            version=version,
            dtype=str(model.dtype).removeprefix("torch."),
            mode=mode,
            max_length=max_length,
            vocab_size=parts.vocab_size,
            tier=chosen.forward.tier,
            bitwise=chosen.bitwise,
        )
        self._model, self._parts, self._device = model, parts, device
        self._forward, self._head, self._limits = chosen.forward, chosen.head, limits
        self._price = price
        self._hosted = Hosted(info, loaded.tokenizer, media_tokens(model.config))

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

    def prepare(self, pieces: Sequence[Piece]) -> Prepared:
        """Lay the pieces out as one batch."""
        return self._forward.prepare(pieces)

    def compute(self, batch: Prepared) -> BatchScores:
        """Score a prepared batch. Out of memory: halve and try again; raises OutOfMemory when one completion does not fit."""
        try:
            return self.compute_whole(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # outside the handler: the traceback held the tensors that did not fit
        self._device.release()
        halves = halve(batch.pieces)
        if halves is None:
            raise OutOfMemory("one completion with its prompt does not fit into the memory that is free")
        log.warning("out of memory at %d tokens: trying in two halves", batch.tokens)
        first, second = (self.compute(self.prepare(half)) for half in (halves.first, halves.second))
        return BatchScores(
            halves.join(first.pieces, second.pieces),
            first.computed_tokens + second.computed_tokens,
            self.info,
            1 + first.splits + second.splits,
        )

    def compute_whole(self, batch: Prepared) -> BatchScores:
        """Score a prepared batch in one go. Raises whatever torch raises when memory runs out."""
        return BatchScores(self._run(batch), batch.tokens, self.info)

    @torch.inference_mode()
    def _run(self, batch: Prepared) -> list[PieceScores]:
        pin(self.info.mode, self._device.type)
        if not len(batch.targets):
            rows = torch.zeros(0, self._parts.weight.shape[1], device=self._parts.weight.device)
        else:
            rows = self._forward.rows(batch)
        return score_pieces(batch.pieces, rows.to(self._parts.weight.device), batch.questions, self._parts, self._head)

    def swap(self, source: str, revision: str | None = None) -> ReferenceInfo:
        """Host another reference. The old one serves on if the new one cannot be loaded or fails its probe."""
        config = replace(self._config, model=source, revision=revision)
        self._on_stage("load")
        self._adopt(load(config), config.served_name or source, self.info.version + 1)
        self._config = config
        return self.info

    @torch.no_grad()
    def mix(self, source: str, decay: float) -> ReferenceInfo:
        """reference <- decay * reference + (1 - decay) * source, tensor by tensor, in fp32.

        Raises ValueError for a decay outside [0, 1] or a source that is another model; then nothing changed.
        """
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay: must be in [0, 1], got {decay}")
        self._on_stage("load")
        other = load(replace(self._config, model=source, revision=None))
        check_mixable(self._model, other.model, source)
        theirs, ours = other.model.state_dict(), self._model.state_dict()
        with Reading(None):  # memory may run out
            for name, tensor in theirs.items():
                if tensor.is_floating_point():  # into the new copy: the hosted one stays whole until all is done
                    tensor.copy_(torch.lerp(tensor.float(), ours[name].to(tensor.device).float(), decay))
        self._adopt(Loaded(other.model, self.tokenizer, other.source), self.info.model, self.info.version + 1)
        return self.info

    def close(self) -> None:
        """Let go of the weights."""
        del self._model, self._parts, self._forward
