"""Who may join the queue: a ledger of accepted tokens and bytes, and how long to wait for room.

Refusing at the door is the only defence against overload; what was let in is answered.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.scheduler.reservations import Reservations

# Before the first batch has been timed: about what a small model does on one CPU core.
ASSUMED_TOKENS_PER_SECOND = 1000.0
# Weight of the past when a batch is added to the rate: the last five or so batches count.
RATE_MEMORY = 0.8
MIN_RETRY_SECONDS = 1.0
# Who comes when it was told to is let in although the queue is this much above its limits: speed is an estimate, and drops.
# It waits longer then; memory is what must not run out.
TOKENS_MARGIN = 4.0
BYTES_MARGIN = 1.25
# Newcomers may fill this much of the queue, whatever is reserved: the engine must not wait for those who do not come.
FOR_NEWCOMERS = 0.25


class Throughput:
    """Tokens per second over the latest batches, as a ratio of two sums that fade alike."""

    def __init__(self) -> None:
        self._seconds = 1.0
        self._tokens = ASSUMED_TOKENS_PER_SECOND
        self.measured = False

    def add(self, tokens: int, seconds: float) -> None:
        if seconds <= 0 or tokens <= 0:
            return
        memory = RATE_MEMORY if self.measured else 0.0
        self._tokens = memory * self._tokens + tokens
        self._seconds = memory * self._seconds + seconds
        self.measured = True

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds


class Admission:
    """The ledger. tokens: accepted, their batch not done. bytes: requests and answers held in memory.

    A refused client is told when there will be room for it, after those who were refused before it, and room is kept for
    it at that time (`reservations`). Newcomers get what is left.
    """

    def __init__(self, max_tokens: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._clock = clock
        self.throughput = Throughput()
        self.reservations = Reservations(clock)
        self._running, self._since = 0, 0.0  # the batch that is being computed: tokens, start
        self.tokens = 0
        self.bytes = 0
        self.requests = 0

    def admit(self, tokens: int, nbytes: int, key: Callable[[], bytes]) -> None:
        """Enter a request. Raises ServiceError: 413 if it can never fit, 429 with Retry-After if not now.

        key: names the request by its content; asked for only under load.
        """
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
        name = key() if self.reservations else None
        if not (self._reserved(tokens, nbytes, name) or self._has_room(tokens, nbytes)):
            speed = self.throughput.tokens_per_second
            seconds = self.reservations.reserve(name or key(), tokens, self._seconds_until_room(tokens, nbytes), speed)
            raise ServiceError(
                ErrorCode.QUEUE_FULL,
                f"the queue is full: {self.waiting:.0f} tokens wait, {self.reservations.kept:.0f} are reserved, and {tokens} "
                f"more do not fit into {self._max_tokens} (--max-queue-tokens) or their {nbytes} bytes into "
                f"{self._max_bytes} (--max-queue-bytes); come back in {seconds:.1f} s, as Retry-After says: room is kept "
                "for this request then",
                retry_after=seconds,
            )
        self.tokens += tokens
        self.bytes += nbytes
        self.requests += 1

    def computing(self, tokens: int) -> None:
        """These accepted tokens are computed from now on; 0: the device is free."""
        self._running, self._since = tokens, self._clock()

    def computed(self, tokens: int) -> None:
        """These accepted tokens wait no longer: computed, or given up."""
        self.tokens -= tokens

    @property
    def waiting(self) -> float:
        """Tokens still to compute: a batch may be half of all that is accepted, and is half done at half time. What is not
        known to be computed at some speed counts whole."""
        if not self.throughput.measured:
            return self.tokens
        done = (self._clock() - self._since) * self.throughput.tokens_per_second
        return self.tokens - min(self._running, done)

    def leave(self, nbytes: int) -> None:
        """A request is over, its memory free."""
        self.bytes -= nbytes
        self.requests -= 1

    def _reserved(self, tokens: int, nbytes: int, name: bytes | None) -> bool:
        """Whether this request was told to come now, and can be let in as it was told."""
        if name is None or not self.reservations.claim(name):
            return False
        room = self.waiting + tokens <= TOKENS_MARGIN * self._max_tokens
        return room and self.bytes + nbytes <= BYTES_MARGIN * self._max_bytes

    def _has_room(self, tokens: int, nbytes: int) -> bool:
        """Whether a newcomer fits beside what waits and what is reserved."""
        kept = min(self.reservations.kept, (1 - FOR_NEWCOMERS) * self._max_tokens)
        return self.waiting + kept + tokens <= self._max_tokens and self.bytes + nbytes <= self._max_bytes

    def _seconds_until_room(self, tokens: int, nbytes: int) -> float:
        """Until this much fits beside what waits, at the measured speed; what is reserved aside."""
        excess = self.waiting + tokens - self._max_tokens
        if self.bytes + nbytes > self._max_bytes:
            excess = self.waiting  # bytes come free as the queue empties
        return max(MIN_RETRY_SECONDS, excess / self.throughput.tokens_per_second)
