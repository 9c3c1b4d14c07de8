"""Which requests share a batch. The fair queue: deficit round robin over requests, in tokens.

Each visit gives a request a quantum of tokens to spend; what it cannot spend yet it keeps. So a request of ten
tokens is through after one round however large its neighbours are, a large one gets its share in every round, and
nobody starves. A request of higher priority spends more a round. (Shreedhar and Varghese,
"Efficient fair queuing using deficit round-robin", SIGCOMM 1995.)

A batch is of one engine. Whose turn it is goes by what each was given so far (`turns`), however many requests wait for it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from grpo_server.engine.contract import Engine
from grpo_server.scheduler.cutting import Cut
from grpo_server.scheduler.job import Job
from grpo_server.scheduler.turns import Turns

# Rounds that a batch-sized cut must wait for its turn: small requests overtake it for at most so many rounds.
ROUNDS_PER_BATCH = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A cut in a batch, and whose it is."""

    job: Job
    cut: Cut


class FairQueue:
    """Jobs in rotation. Not for threads: it belongs to one event loop.

    max_batch_tokens, max_batch_bytes: what a batch holds. A cut that is larger than that gets a batch to itself.
    """

    def __init__(self, max_batch_tokens: int, max_batch_bytes: int | None = None) -> None:
        self.resize(max_batch_tokens, max_batch_bytes)
        self._turns = Turns()
        self._rotation: deque[Job] = deque()
        self.tokens = 0

    def resize(self, max_batch_tokens: int, max_batch_bytes: int | None) -> None:
        """From now on a batch holds this much."""
        self._max_tokens = max_batch_tokens
        self._max_bytes = max_batch_bytes
        self._quantum = max(1, max_batch_tokens // ROUNDS_PER_BATCH)

    def __bool__(self) -> bool:
        return bool(self._rotation)

    def __len__(self) -> int:
        return len(self._rotation)

    @property
    def fills_a_batch(self) -> bool:
        """True when nothing would be gained by waiting for more requests before the next batch is taken."""
        return self.tokens >= self._max_tokens

    def add(self, job: Job) -> None:
        self._rotation.append(job)
        self.tokens += job.waiting_tokens

    def discard(self, job: Job) -> int:
        """Take a job out whose client has left. Returns the tokens that need no longer be computed."""
        if not job.waiting:
            return 0
        tokens = job.waiting_tokens
        self._rotation.remove(job)
        job.waiting.clear()
        self.tokens -= tokens
        return tokens

    def take(self) -> list[Entry]:
        """The next batch: cuts for one engine, or for several that share batches, with those that follow them, in fair order
        until none that waits would fit."""
        batch: list[Entry] = []
        room = self._max_tokens
        room_bytes = self._max_bytes
        did_not_fit: deque[Job] = deque()
        engine = self._turns.next(dict.fromkeys(job.engine for job in self._rotation))
        while self._rotation:
            job = self._rotation.popleft()
            if engine is None or not _share(engine, job.engine):
                did_not_fit.append(job)
                continue
            cuts = job.next_cuts()
            tokens, nbytes = sum(c.tokens for c in cuts), sum(c.bytes for c in cuts)
            if job.deficit < tokens:
                job.deficit += max(1, int(self._quantum * job.weight))
            fits = tokens <= room and (room_bytes is None or nbytes <= room_bytes)
            if not fits and (batch or not self._too_large(tokens, nbytes)):
                did_not_fit.append(job)
            elif job.deficit < tokens:
                self._rotation.append(job)
            else:
                batch += [Entry(job, job.waiting.popleft()) for _ in cuts]
                job.deficit -= tokens
                self._turns.given(job.engine, tokens / job.weight)
                room -= tokens
                if room_bytes is not None:
                    room_bytes -= nbytes
                self.tokens -= tokens
                if job.waiting:  # its turn lasts as long as what it has to spend
                    stays = job.deficit >= sum(c.tokens for c in job.next_cuts())
                    (self._rotation.appendleft if stays else self._rotation.append)(job)
        self._rotation = did_not_fit
        return batch

    def _too_large(self, tokens: int, nbytes: int) -> bool:
        """Whether no batch holds it beside others: it gets one to itself."""
        return tokens > self._max_tokens or (self._max_bytes is not None and nbytes > self._max_bytes)


def _share(engine: Engine, other: Engine) -> bool:
    return other is engine or engine.shares_batches_with(other)
