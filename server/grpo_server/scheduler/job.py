"""One accepted request on its way through the queue."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from grpo_client.protocol import ReferenceInfo, ScoreRequest, ScoreResult, Usage

from grpo_server.engine.contract import Engine
from grpo_server.scheduler.accounts import Account
from grpo_server.scheduler.assembly import Assembly
from grpo_server.scheduler.cutting import Cut
from grpo_server.scheduler.journal import Journal


@dataclass(eq=False, slots=True)
class Job:
    """A request, the cuts that still wait, and the answer that grows. Times in seconds of the scheduler's clock.

    engine: computes all of it, and hosts the reference.
    host_bytes: what request and answer occupy. keys: cache keys per completion, empty when there is no cache.
    outstanding: cuts not yet scored, waiting ones and those in a batch. deficit: tokens that fairness still owes it.
    account: whose request it is; None: nobody's in particular. journal: what became of it, where somebody reads that.
    tokens: as priced, those found in the cache not among them.
    """

    request: ScoreRequest
    engine: Engine
    reference: ReferenceInfo
    assembly: Assembly
    waiting: deque[Cut]
    keys: Sequence[bytes]
    host_bytes: int
    arrived: float
    cached_sequences: int
    done: asyncio.Future[ScoreResult]
    account: Account | None = None
    journal: Journal | None = None
    tokens: int = 0
    outstanding: int = 0
    deficit: int = 0
    started: float | None = None
    compute_seconds: float = 0.0
    computed_tokens: float = field(default=0.0)

    @property
    def over(self) -> bool:
        """True once nobody waits for it: answered, failed, or its client left."""
        return self.done.done()

    def next_cuts(self) -> list[Cut]:
        """The first that waits, and those that follow it into its batch."""
        followers = itertools.takewhile(lambda c: c.follows, itertools.islice(self.waiting, 1, None))
        return [self.waiting[0], *followers]

    @property
    def weight(self) -> float:
        """Its share of each round of the queue, 1 unless its key says otherwise."""
        return 1.0 if self.account is None else self.account.weight

    @property
    def failed(self) -> bool:
        """True when it got an error instead of scores."""
        return self.done.done() and not self.done.cancelled() and self.done.exception() is not None

    @property
    def waiting_tokens(self) -> int:
        return sum(c.tokens for c in self.waiting)

    def answer(self, now: float) -> ScoreResult:
        started = now if self.started is None else self.started
        return self.assembly.finish(
            self.reference,
            Usage(
                prompt_tokens=self.assembly.prompt_tokens,
                completion_tokens=self.assembly.completion_tokens,
                computed_tokens=round(self.computed_tokens),
                cached_sequences=self.cached_sequences,
                queue_ms=(started - self.arrived) * 1000,
                compute_ms=self.compute_seconds * 1000,
            ),
        )
