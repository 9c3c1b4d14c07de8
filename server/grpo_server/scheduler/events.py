"""What the scheduler tells about itself, for metrics. A listener only counts: it must not raise, wait or call back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from grpo_client.protocol import ReferenceInfo


@dataclass(frozen=True, slots=True)
class Share:
    """What of a batch was one reference's. tokens: as priced. scored_tokens: log-probs that came out."""

    reference: ReferenceInfo
    tokens: int
    scored_tokens: int


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One batch went through the engine.

    shares: of each reference in it, for adapters share batches with their base. tokens: as priced. computed_tokens: what really
    ran, shared prompts once. scored_tokens: log-probs that came out. flops: as in `BatchScores`.
    """

    shares: tuple[Share, ...]
    requests: int
    tokens: int
    computed_tokens: int
    scored_tokens: int
    seconds: float
    splits: int
    flops: float = 0.0


class Listener(Protocol):
    def request_accepted(self, reference: ReferenceInfo) -> None:
        """A request was entered, which this reference answers."""
        ...

    def request_started(self, queue_seconds: float) -> None:
        """The first cut of a request went into a batch."""
        ...

    def batch_done(self, batch: BatchDone) -> None: ...

    def cache_looked_up(self, reference: ReferenceInfo, hits: int, misses: int) -> None:
        """Completions found and not found; not called when the cache is off."""
        ...


class Silence:
    """The listener that listens to nothing."""

    def request_accepted(self, reference: ReferenceInfo) -> None: ...

    def request_started(self, queue_seconds: float) -> None: ...

    def batch_done(self, batch: BatchDone) -> None: ...

    def cache_looked_up(self, reference: ReferenceInfo, hits: int, misses: int) -> None: ...
