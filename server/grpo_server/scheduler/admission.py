"""Who may join the queue: a ledger of accepted tokens and bytes, and how long to wait for room.

Refusing at the door is the only defence against overload; what was let in is answered.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from grpo_server.errors import ErrorCode, ServiceError

# Before the first batch has been timed: about what a small model does on one CPU core.
ASSUMED_TOKENS_PER_SECOND = 1000.0
# Weight of the past when a batch is added to the rate: the last five or so batches count.
RATE_MEMORY = 0.8
MIN_RETRY_SECONDS = 1.0


class Throughput:
    """Tokens per second over the latest batches, as a ratio of two sums that fade alike."""

    def __init__(self) -> None:
        self._seconds = 1.0
        self._tokens = ASSUMED_TOKENS_PER_SECOND
        self._measured = False

    def add(self, tokens: int, seconds: float) -> None:
        if seconds <= 0 or tokens <= 0:
            return
        memory = RATE_MEMORY if self._measured else 0.0
        self._tokens = memory * self._tokens + tokens
        self._seconds = memory * self._seconds + seconds
        self._measured = True

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds


class Admission:
    """The ledger. tokens: accepted and not yet computed. bytes: requests and answers held in memory.

    A refused client is told when there will be room for it, after those who were refused before it: the tokens it was
    promised are remembered until that moment, so that a crowd comes back one after the other and not all at once.
    """

    def __init__(self, max_tokens: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._clock = clock
        self._promises: list[tuple[float, int]] = []  # a heap of (when it falls due, tokens)
        self._promised = 0
        self.throughput = Throughput()
        self.tokens = 0
        self.bytes = 0
        self.requests = 0

    def admit(self, tokens: int, nbytes: int) -> None:
        """Enter a request. Raises ServiceError: 413 if it can never fit, 429 with Retry-After if not now."""
        if tokens > self._max_tokens:
            raise ServiceError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"the request needs {tokens} tokens and the queue holds {self._max_tokens}; send fewer groups a "
                "request, or start the server with a larger --max-queue-tokens",
                param="groups",
            )
        if nbytes > self._max_bytes:
            raise ServiceError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"the request and its answer need {nbytes} bytes and the queue holds {self._max_bytes}; send fewer "
                "groups, a smaller top_k or fewer token_ids, or start the server with a larger --max-queue-bytes",
                param="groups",
            )
        if self.tokens + tokens > self._max_tokens or self.bytes + nbytes > self._max_bytes:
            seconds = self._promise(tokens)
            raise ServiceError(
                ErrorCode.QUEUE_FULL,
                f"the queue is full: {self.tokens} tokens wait and {tokens} more do not fit into {self._max_tokens} "
                f"(--max-queue-tokens) or their {nbytes} bytes into {self._max_bytes} (--max-queue-bytes); "
                f"come back in {seconds:.1f} s, as Retry-After says",
                retry_after=seconds,
            )
        self.tokens += tokens
        self.bytes += nbytes
        self.requests += 1

    def computed(self, tokens: int) -> None:
        """These accepted tokens wait no longer: computed, or given up."""
        self.tokens -= tokens

    def leave(self, nbytes: int) -> None:
        """A request is over, its memory free."""
        self.bytes -= nbytes
        self.requests -= 1

    def _promise(self, tokens: int) -> float:
        """Seconds until this many tokens fit, given the measured speed and what others were promised."""
        now = self._clock()
        while self._promises and self._promises[0][0] <= now:
            self._promised -= heapq.heappop(self._promises)[1]
        # A client that ignores Retry-After must not push everybody's wait without bound: one queue's worth at most.
        excess = self.tokens + min(self._promised, self._max_tokens) + tokens - self._max_tokens
        if excess <= 0:  # refused for its bytes: those come free as the queue empties
            excess = self.tokens
        seconds = max(MIN_RETRY_SECONDS, excess / self.throughput.tokens_per_second)
        if self._promised < self._max_tokens:
            heapq.heappush(self._promises, (now + seconds, tokens))
            self._promised += tokens
        return seconds
