"""What an engine is to others: what passes between scheduler and engine, and what the service needs of it beside scoring. numpy
only, so that the scheduler can be tested with a list and a clock.

A request is cut into pieces; a piece is one prompt with some of its completions, all that the engine must know to
score them. Pieces of many requests share a batch, in any mix of temperatures, normalizers and extras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from grpo_client.masking import Mask
from grpo_client.protocol import Extra, FloatArray, IntArray, Normalizer, ReferenceInfo
from grpo_client.tokenizers import TokenizerIdentity

from .config import BatchLimits


@dataclass(frozen=True, slots=True)
class Piece:
    """One prompt (P,) with completions (C,) each; token_ids and completion_mask as in `grpo_client.protocol.Group`."""

    prompt: IntArray
    completions: tuple[IntArray, ...]
    temperature: float
    normalizer: Normalizer = "softmax"
    extras: frozenset[Extra] = frozenset()
    top_k: int = 0
    token_ids: tuple[IntArray, ...] | None = None
    completion_mask: tuple[Mask, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens to run through the model: the prompt once, and every completion."""
        return len(self.prompt) + sum(len(c) for c in self.completions)

    @property
    def asked(self) -> Mask:
        """(N,) over all completion tokens: those that are scored."""
        masks = self.completion_mask or [np.ones(len(c), dtype=np.bool_) for c in self.completions]
        return np.concatenate([np.zeros(0, dtype=np.bool_), *masks])

    @property
    def asked_tokens(self) -> int:
        """How many tokens are scored."""
        if self.completion_mask is None:
            return sum(len(c) for c in self.completions)
        return sum(int(np.count_nonzero(mask)) for mask in self.completion_mask)

    def needed(self, *, whole: bool) -> Piece:
        """What must be computed of it: nothing of a completion of which nothing is asked, and nothing behind the last token
        that is. whole: leave completions as they are where anything of them is asked."""
        if self.completion_mask is None:
            return self
        ends = [int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0 for mask in self.completion_mask]
        if whole:
            ends = [len(mask) if end else 0 for mask, end in zip(self.completion_mask, ends, strict=True)]
        return replace(
            self,
            completions=tuple(c[:end] for c, end in zip(self.completions, ends, strict=True)),
            token_ids=None,
            completion_mask=tuple(mask[:end] for mask, end in zip(self.completion_mask, ends, strict=True)),
        )

    def part(self, members: slice) -> Piece:
        """Some of the completions, with all that they are asked with."""
        return replace(
            self,
            completions=self.completions[members],
            token_ids=None if self.token_ids is None else self.token_ids[members],
            completion_mask=None if self.completion_mask is None else self.completion_mask[members],
        )


@dataclass(frozen=True, slots=True)
class PieceScores:
    """Flat over the piece's completion tokens, in order: logprobs (N,), extras as EXTRA_ARRAYS, status (S,) uint8. Where
    nothing is asked, figures are NaN and ids and ranks -1."""

    logprobs: FloatArray
    status: npt.NDArray[np.uint8]
    extras: dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Hosted:
    """A reference as one value, which changes as a whole: its identity, and the tokenizer that its fingerprint covers (a
    transformers tokenizer, used as `grpo_server.text.requests.Tokenizer` says; None where the model came without one).
    media: ids that stand for what is not text, and what for ("image", "video", "audio"); they cannot be scored."""

    info: ReferenceInfo
    tokenizer: Any
    media: Mapping[int, str] = field(default_factory=lambda: {})
    tokenizer_identity: TokenizerIdentity | None = None
    # text of ids by themselves, as far as somebody has asked: a tokenizer need not say the same twice
    strings: dict[int, str] = field(default_factory=lambda: {}, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BatchScores:
    """Scores of each piece in the order given, the tokens that really ran (shared prompts counted once), and who computed
    them. references: of each piece, where they are of several. flops: arithmetic operations of the model (`engine.flops`); 0
    where they are not known."""

    pieces: list[PieceScores]
    computed_tokens: int
    reference: ReferenceInfo
    splits: int = 0  # how often the batch was halved because memory ran out
    references: Sequence[ReferenceInfo] | None = None
    flops: float = 0.0

    def reference_of(self, piece: int) -> ReferenceInfo:
        """Who computed the scores of this one."""
        return self.reference if self.references is None else self.references[piece]


@dataclass(frozen=True, slots=True)
class Change:
    """What shall be hosted next. source: as `EngineConfig.model`, its files here already. name: what clients see; None: the
    source. decay: share of the hosted weights that stays, whose name and tokenizer stay as well; None: none. version: that it
    gets; None: the hosted one's + 1."""

    source: str
    revision: str | None = None
    name: str | None = None
    decay: float | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Addition:
    """A further reference beside those that are hosted: a model, or an adapter of one of them. source, revision, version,
    fingerprint, offline: as in `EngineConfig`. name: what clients see, whatever is hosted under it later."""

    source: str
    name: str
    revision: str | None = None
    version: int = 1
    fingerprint: str | None = None
    offline: bool = False


class Tally(Protocol):
    """Counts the tokens of a batch while it is put together."""

    def add(self, piece: Piece) -> int:
        """Tokens that this piece adds to those added before, with which it may have some in common."""
        ...


class Engine(Protocol):
    """What the scheduler needs of an engine. `prepare` may run beside `compute`; `compute` runs on one thread only.

    `compute` raises `OutOfMemory` when even a single piece cannot be scored; nothing else is expected of it.
    """

    @property
    def info(self) -> ReferenceInfo: ...

    def prepare(self, pieces: Sequence[Piece], engines: Sequence[Any] | None = None) -> Any:
        """A batch for `compute`. engines: whose each piece is, all of which share batches with this one; None: all its own."""
        ...

    def shares_batches_with(self, other: Any) -> bool:
        """Whether pieces of both may be computed in one batch, with the scores that each would have alone."""
        ...

    def compute(self, batch: Any) -> BatchScores: ...

    def bytes_of(self, piece: Piece) -> int:
        """Peak bytes above the loaded weights that scoring this piece alone would take: known before it runs."""
        ...

    def tally(self) -> Tally:
        """An empty batch, to see what pieces would cost together."""
        ...


class OutOfMemory(RuntimeError):
    """One piece alone does not fit into memory."""


# Told "load", "probe", "verify" as each begins; what it raises ends the change that it is told of.
OnStage: TypeAlias = Callable[[str], None]


class HostedEngine(Engine, Protocol):
    """An engine with one reference, and beside which the engine for the next one can be made."""

    @property
    def reads_files(self) -> bool:
        """Whether what it loads are a model's files, which must be here first."""
        ...

    @property
    def hosted(self) -> Hosted:
        """Who answers now; `info` is its identity."""
        ...

    @property
    def limits(self) -> BatchLimits:
        """What it takes at a time; the same as long as it lives."""
        ...

    @property
    def peak_flops(self) -> float | None:
        """The most operations a second that its devices do in its precision, to read `BatchScores.flops` against; None where
        either is not known."""
        ...

    def beside(self, change: Change, on_stage: OnStage) -> HostedEngine:
        """Another engine, which hosts what the change makes of this reference, as the next version. On any thread; this one
        may serve meanwhile, and stays as it is. Raises OSError or ValueError when the source cannot be
        loaded or does not fit."""
        ...

    def adapt(self, addition: Addition, on_stage: OnStage) -> HostedEngine:
        """Another engine, which hosts this reference with an adapter on it and shares its weights; either may be closed first.
        On any thread; this one may serve meanwhile. Raises OSError or ValueError when the adapter cannot be loaded, does not
        fit this base, or has no room."""
        ...

    def add(self, addition: Addition, on_stage: OnStage) -> HostedEngine:
        """Another engine, which hosts a further reference. As `beside`, but that its limits are of what is free by then."""
        ...

    def no_room_beside(self, source: str) -> str | None:
        """Why the weights in `source` cannot be held beside the hosted ones, for people; None: they can."""
        ...

    def save(self, directory: Path) -> None:
        """Write the hosted reference into an empty directory, as it can be loaded. Raises OSError."""
        ...

    def close(self) -> None:
        """Let go of the weights. Called once nothing of it is prepared or computed."""
        ...


# Loads the model, in the thread in which it will compute. Whatever it raises is a failed start.
EngineLoader: TypeAlias = Callable[[], HostedEngine]
