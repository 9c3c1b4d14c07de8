"""What an engine is to others: what passes between scheduler and engine, and what the service needs of it beside scoring. numpy
only, so that the scheduler can be tested with a list and a clock.

A request is cut into pieces; a piece is one prompt with some of its completions, all that the engine must know to
score them. Pieces of many requests share a batch, in any mix of temperatures, normalizers and extras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from grpo_client.protocol import Extra, FloatArray, IntArray, Normalizer, ReferenceInfo

from .config import BatchLimits


@dataclass(frozen=True, slots=True)
class Piece:
    """One prompt (P,) with completions (C,) each; token_ids as in `grpo_client.protocol.Group`."""

    prompt: IntArray
    completions: tuple[IntArray, ...]
    temperature: float
    normalizer: Normalizer = "softmax"
    extras: frozenset[Extra] = frozenset()
    top_k: int = 0
    token_ids: tuple[IntArray, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens to run through the model: the prompt once, and every completion."""
        return len(self.prompt) + sum(len(c) for c in self.completions)


@dataclass(frozen=True, slots=True)
class PieceScores:
    """Flat over the piece's completion tokens, in order: logprobs (N,), extras as EXTRA_ARRAYS, status (S,) uint8."""

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


@dataclass(frozen=True, slots=True)
class BatchScores:
    """Scores of each piece in the order given, the tokens that really ran (shared prompts counted once), and who computed
    them."""

    pieces: list[PieceScores]
    computed_tokens: int
    reference: ReferenceInfo
    splits: int = 0  # how often the batch was halved because memory ran out


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

    def prepare(self, pieces: Sequence[Piece]) -> Any: ...

    def compute(self, batch: Any) -> BatchScores: ...

    def bytes_of(self, piece: Piece) -> int:
        """Peak bytes above the loaded weights that scoring this piece alone would take: known before it runs."""
        ...

    def tally(self) -> Tally:
        """An empty batch, to see what pieces would cost together."""
        ...


class OutOfMemory(RuntimeError):
    """One piece alone does not fit into memory."""


class HostedEngine(Engine, Protocol):
    """An engine with a reference that can be replaced. `swap` and `mix` run on the compute thread, alone.

    Both raise OSError or ValueError when the source cannot be loaded or does not fit, and leave the old reference as it
    was.
    """

    @property
    def hosted(self) -> Hosted:
        """Who answers now; `info` is its identity."""
        ...

    @property
    def limits(self) -> BatchLimits:
        """What it takes at a time; the same as long as it lives."""
        ...

    def swap(self, source: str, revision: str | None) -> ReferenceInfo:
        """Host another model; version + 1."""
        ...

    def mix(self, source: str, decay: float) -> ReferenceInfo:
        """weights = decay * weights + (1 - decay) * those of source; version + 1."""
        ...

    def close(self) -> None: ...


# Loads the model, in the thread in which it will compute. Whatever it raises is a failed start.
EngineLoader: TypeAlias = Callable[[], HostedEngine]
