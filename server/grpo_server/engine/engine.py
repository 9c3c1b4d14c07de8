"""The engine: one frozen reference, token pieces in, scores out. Knows nothing of HTTP, queues or clients.

At load it chooses the best way of sharing prompts that the probe shows to be right for this very model, and claims bitwise
reproducibility only where the probe shows it. `prepare` may run on any thread beside `compute`; `compute`, `swap` and `mix`
belong to one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from grpo_client.protocol import ReferenceInfo
from grpo_client.reading import Reading
from grpo_numerics import HeadScores, score_rows
from grpo_numerics.loaded_weights import differing
from grpo_numerics.weight_names import told
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .anatomy import Anatomy, anatomy
from .bits import keeps_bits
from .config import EngineConfig
from .fingerprint import fingerprint
from .forwards import CachedForward, Forward, PackedForward, PlainForward, Prepared
from .loading import Loaded, load
from .memory import is_out_of_memory, split
from .probe import Finding, check_scores, probe_pieces
from .refusal import refusal
from .scoring import in_whole_blocks, score_pieces
from .tensor_parallel import LeadingEngine, Ranks
from .work import BatchScores, Hosted, OutOfMemory, Piece, PieceScores

log = logging.getLogger(__name__)

Head = Callable[..., HeadScores]  # `grpo_numerics.score_rows`, or the same over several processes
OnStage = Callable[[str], None]  # told "load", "probe", "verify" as each begins, at a start and at a swap

# scratch of the head and of the allocator, whatever the batch
_FIXED_BYTES = 96 << 20


class TorchEngine:
    """See `work.Engine` for the contract. `tokenizer` is None when the source has none."""

    def __init__(
        self, config: EngineConfig, loaded: Loaded, head: Head = score_rows, on_stage: OnStage = lambda _: None
    ) -> None:
        self._config, self._head = config, head if config.batch_rows is None else in_whole_blocks(head)
        self._on_stage = on_stage
        self._adopt(loaded, config.served_name or config.model, version=1)

    def _adopt(self, loaded: Loaded, name: str, version: int) -> None:
        """Take a loaded model into service; nothing of the engine changes unless all of it succeeds."""
        model = loaded.model
        with Reading(None):  # a model that cannot be taken apart is no better than one that cannot be read
            parts = anatomy(model)
            max_length = min(parts.max_length, self._config.max_length or parts.max_length)
            self._on_stage("probe")
            forward, bitwise = _choose(self._config, model, parts, max_length, self._head)
            self._on_stage("verify")
            identity = fingerprint(model, loaded.tokenizer)
        info = ReferenceInfo(
            model=name,
            fingerprint=identity,
            version=version,
            dtype=str(model.dtype).removeprefix("torch."),
            mode=self._config.mode,
            max_length=max_length,
            vocab_size=parts.vocab_size,
            tier=forward.tier,
            bitwise=bitwise,
        )
        self._model, self._parts, self._forward = model, parts, forward
        self._hosted = Hosted(info, loaded.tokenizer)

    @property
    def hosted(self) -> Hosted:
        """Who answers now."""
        return self._hosted

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
        wanted = sum(len(c) for c in piece.completions)
        per_row = 4 * self._parts.weight.shape[1] + 16 * (1 + piece.top_k)
        return piece.tokens * self._parts.token_bytes + wanted * per_row + _FIXED_BYTES

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
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        halves = split(batch.pieces)
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
        if not len(batch.targets):
            rows = torch.zeros(0, self._parts.weight.shape[1], device=self._parts.weight.device)
        else:
            rows = self._forward.rows(batch)
        return score_pieces(batch.pieces, rows.to(self._parts.weight.device), batch.targets, self._parts, self._head)

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

        Raises ValueError for a decay outside [0, 1] or a source whose tensors differ in name or shape; then nothing changed.
        """
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay: must be in [0, 1], got {decay}")
        self._on_stage("load")
        other = load(replace(self._config, model=source, revision=None))
        theirs, ours = other.model.state_dict(), self._model.state_dict()
        if others := differing(theirs, ours):
            raise ValueError(
                f"model: {source!r} does not have the tensors of the hosted reference ({told(others)}); "
                "swap instead of mixing"
            )
        with Reading(None):  # memory may run out
            for name, tensor in theirs.items():
                if tensor.is_floating_point():  # into the new copy: the hosted one stays whole until all is done
                    tensor.copy_(torch.lerp(tensor.float(), ours[name].to(tensor.device).float(), decay))
        self._adopt(Loaded(other.model, self.tokenizer, other.source), self.info.model, self.info.version + 1)
        return self.info

    def close(self) -> None:
        """Let go of the weights."""
        del self._model, self._parts, self._forward


def load_engine(config: EngineConfig, on_stage: OnStage = lambda _: None) -> TorchEngine | LeadingEngine:
    """Load, probe and return an engine. Raises OSError or ValueError with what to change."""
    if config.tensor_parallel:
        ranks = Ranks()
        return LeadingEngine(load_shared(config, ranks, on_stage), ranks)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    on_stage("load")
    return TorchEngine(config, load(config), on_stage=on_stage)


def load_shared(config: EngineConfig, ranks: Ranks, on_stage: OnStage = lambda _: None) -> TorchEngine:
    """This rank's slice of the engine. All ranks must call it."""
    if config.device_map:
        raise ValueError("device_map: not together with tensor_parallel; leave one of them out")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    on_stage("load")
    return TorchEngine(config, load(config, ranks.size), ranks.score_rows, on_stage)


def _choose(
    config: EngineConfig, model: PreTrainedModel, parts: Anatomy, max_length: int, head: Head
) -> tuple[Forward, bool]:
    """The best forward that the probe shows right, and whether its scores keep their bits."""
    pieces = probe_pieces(parts, max_length)
    own = model.config._attn_implementation or "eager"
    why: list[str] = []
    for make in _candidates(config, parts, max_length):
        forward = make(model, parts, config, own)
        finding = _try(forward, model, parts, pieces, own, head)
        if finding.right:
            log.info("scores by the %s path: within %.1e nats of the model itself", forward.tier, finding.largest)
            return forward, keeps_bits(config, parts, _scorer(forward, parts, head), pieces)
        log.warning("the %s path is not right for %s: %s", forward.tier, type(model).__name__, finding.note)
        why.append(f"{forward.tier}: {finding.note}")
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
) -> Finding:
    """A model that the path does not fit may also refuse in its own words: that is an answer, too."""
    try:
        finding = check_scores(_scorer(forward, parts, head), model, parts, pieces, own)
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError, KeyError) as error:
        model.set_attn_implementation(own)
        return Finding(False, float("inf"), float("inf"), f"{type(error).__name__}: {error}")
    if isinstance(forward, PackedForward) and forward.calls != parts.attention_layers:
        note = f"{forward.calls} of {parts.attention_layers} layers came through the registered attention"
        return Finding(False, finding.largest, finding.mean, note)
    return finding


def _scorer(forward: Forward, parts: Anatomy, head: Head) -> Any:
    @torch.inference_mode()
    def score(pieces: Sequence[Piece]) -> list[PieceScores]:
        batch = forward.prepare(pieces)
        return score_pieces(pieces, forward.rows(batch).to(parts.weight.device), batch.targets, parts, head)

    return score
