"""What one key may ask of the engine: tokens a minute, tokens in the queue at a time, and its share where keys compete.

An account is a ledger like `admission`'s, of one key. Both must agree before a request is entered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from grpo_server.errors import ErrorCode, ServiceError

Priority = Literal["high", "normal", "low"]
# Of the engine's time, where requests compete: a request of high priority gets four times the tokens a round. Nobody starves.
WEIGHTS: dict[Priority, float] = {"high": 4.0, "normal": 1.0, "low": 0.25}
SECONDS_PER_MINUTE = 60.0
MIN_RETRY_SECONDS = 1.0
ROUNDING = 1e-3  # tokens: who comes at the moment that it was told is let in, whatever the sum of the refills is worth


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """Tokens as priced, which is what the engine computes: a shared prompt once, what the cache holds not at all. None: no
    limit."""

    tokens_per_minute: int | None = None
    max_queue_tokens: int | None = None
    priority: Priority = "normal"


class Account:
    """A bucket of one minute's tokens that refills all the time, and a count of what is accepted and not yet answered.

    A request larger than the bucket is let in when that is full and leaves it in debt, so that over time the rate holds
    whatever the size of the requests. `limits` may be replaced at any time. clock: seconds, monotonic.
    """

    def __init__(self, name: str, limits: AccountLimits, clock: Callable[[], float]) -> None:
        self.name = name
        self._clock = clock
        self._limits = limits
        self._balance = float(limits.tokens_per_minute or 0)
        self._since = clock()
        self.queue_tokens = 0
        self.computed_tokens = 0
        self.answers: Counter[int] = Counter()  # of its requests, by status

    @property
    def limits(self) -> AccountLimits:
        return self._limits

    @limits.setter
    def limits(self, limits: AccountLimits) -> None:
        self._refill()
        before, after = self._limits.tokens_per_minute, limits.tokens_per_minute
        if after is not None:  # what was spent of the last minute stays spent
            self._balance = float(after) if before is None else min(self._balance, float(after))
        self._limits = limits

    @property
    def weight(self) -> float:
        """The share of its requests in each round of the queue."""
        return WEIGHTS[self._limits.priority]

    def check(self, tokens: int, tokens_per_second: float) -> None:
        """Whether so many may be entered now. Changes nothing.

        tokens_per_second: how fast the engine is, to say when there will be room. Raises ServiceError: 413 for what never
        fits, 429 with Retry-After.
        """
        self._check_queue(tokens, tokens_per_second)
        self._check_rate(tokens)

    def enter(self, tokens: int) -> None:
        """A request of so many tokens was accepted."""
        self.queue_tokens += tokens
        if self._limits.tokens_per_minute is not None:
            self._refill()
            self._balance -= tokens

    def leave(self, tokens: int, unused: int) -> None:
        """That request is over; unused: tokens of it that were not computed, and are given back."""
        self.queue_tokens -= tokens
        self.computed_tokens += tokens - unused
        if (limit := self._limits.tokens_per_minute) is not None:
            self._balance = min(float(limit), self._balance + unused)

    def _check_queue(self, tokens: int, tokens_per_second: float) -> None:
        limit = self._limits.max_queue_tokens
        if limit is None or self.queue_tokens + tokens <= limit:
            return
        if tokens > limit:
            raise ServiceError(
                ErrorCode.REQUEST_TOO_LARGE,
                f"the request needs {tokens} tokens and the key {self.name} may have {limit} in the queue "
                "(max_queue_tokens in the keys file); send fewer groups a request, or ask for a higher limit",
                param="groups",
            )
        seconds = max(MIN_RETRY_SECONDS, (self.queue_tokens + tokens - limit) / tokens_per_second)
        raise ServiceError(
            ErrorCode.KEY_QUEUE_FULL,
            f"the key {self.name} has {self.queue_tokens} tokens in the queue and may have {limit} (max_queue_tokens in the "
            f"keys file), so {tokens} more do not fit; wait for an answer, or come back in {seconds:.1f} s, as Retry-After "
            "says",
            retry_after=seconds,
        )

    def _check_rate(self, tokens: int) -> None:
        limit = self._limits.tokens_per_minute
        if limit is None:
            return
        self._refill()
        missing = min(tokens, limit) - self._balance
        if missing <= ROUNDING:
            return
        seconds = max(MIN_RETRY_SECONDS, missing * SECONDS_PER_MINUTE / limit)
        raise ServiceError(
            ErrorCode.KEY_RATE_LIMIT,
            f"the key {self.name} has spent its {limit} tokens a minute (tokens_per_minute in the keys file), and this "
            f"request needs {tokens}; come back in {seconds:.1f} s, as Retry-After says, or ask for a higher limit",
            retry_after=seconds,
        )

    def _refill(self) -> None:
        now = self._clock()
        if (limit := self._limits.tokens_per_minute) is not None:
            self._balance = min(float(limit), self._balance + (now - self._since) * limit / SECONDS_PER_MINUTE)
        self._since = now
