"""Room kept for clients that were told when to come back, so that `Retry-After` proves right.

A refused request gets a time, and from then on room for a while. It is known again by its content, so no client needs to
carry a ticket. Not everybody comes back: reservations count by the share of them that is claimed, as seats of an aeroplane
do, and what nobody claims goes to newcomers.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from grpo_server.scheduler.timeline import HORIZON_SECONDS, Timeline

# Room is kept from so many seconds before the moment that was named: what a newcomer occupies now is not computed by then.
AHEAD_SECONDS = 1.0
# A sleep may end, and a clock may tick, this much early.
EARLY_SECONDS = 0.05
# How long after it a client may come: the network, its own jitter, a busy event loop.
GRACE_SECONDS = 2.0
# Room for so many standard deviations more than come on average.
DEVIATIONS = 2.0
# Of what is computed in a second so much is promised: chance brings more, or the speed drops, and it must go down again.
PROMISED = 0.9
# Weight of the past in the share of claimed reservations: the last two hundred or so count.
CLAIM_MEMORY = 0.995
# A crowd that never comes back as it went is still told different times, as if one in twenty came.
MIN_CLAIMED = 0.05
# More than this many are not kept in memory; who is refused beyond it is told a time all the same.
MAX_RESERVATIONS = 50_000


@dataclass(eq=False, slots=True)
class Reservation:
    """Of the request `key`, from `due` to `until` (seconds of the clock)."""

    key: bytes
    tokens: int
    due: float
    until: float
    open: bool = True


class ClaimRate:
    """Of the reservations that ended, how many were claimed. Two sums that fade alike; at first everybody is expected."""

    def __init__(self) -> None:
        self._claimed = 1.0
        self._ended = 1.0

    def add(self, claimed: bool) -> None:
        self._claimed = CLAIM_MEMORY * self._claimed + claimed
        self._ended = CLAIM_MEMORY * self._ended + 1

    @property
    def upper(self) -> float:
        """One standard error above the mean: room that stays empty costs little, a broken promise much."""
        mean = self._claimed / self._ended
        return min(1.0, max(MIN_CLAIMED, mean + math.sqrt(mean * (1 - mean) / self._ended)))


class Reservations:
    """Upcoming ones, those whose time has come, and the share of them that is claimed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._number = itertools.count()  # breaks ties in the heaps
        self._upcoming: list[tuple[float, int, Reservation]] = []
        self._present: list[tuple[float, int, Reservation]] = []
        self._by_key: dict[bytes, list[Reservation]] = {}
        self._present_tokens = 0
        self._present_squares = 0
        self._open = 0
        self._timeline = Timeline(clock)
        self._claim_rate = ClaimRate()

    def __len__(self) -> int:
        """Open ones; some of them may have lapsed without anybody having looked since."""
        return self._open

    def reserve(self, key: bytes, tokens: int, seconds: float, tokens_per_second: float) -> float:
        """Keep room at the first moment that is not promised to others; returns the seconds until then, `seconds` or more."""
        self._advance()
        seconds = self._timeline.place(tokens, seconds, PROMISED * tokens_per_second / self._claim_rate.upper)
        if self._open < MAX_RESERVATIONS and seconds < HORIZON_SECONDS:
            now = self._clock()
            # HTTP's Retry-After has whole seconds: who reads only that comes so much later
            made = Reservation(key, tokens, now + seconds, now + math.ceil(seconds) + GRACE_SECONDS)
            heapq.heappush(self._upcoming, (made.due, next(self._number), made))
            self._by_key.setdefault(key, []).append(made)
            self._open += 1
        return seconds

    def claim(self, key: bytes) -> bool:
        """Whether this request was told to come now. Its reservation is used up."""
        self._advance()
        of_key = self._by_key.get(key)
        if of_key is None:
            return False
        first = min(of_key, key=lambda r: r.due)
        if first.due > self._clock() + EARLY_SECONDS:
            return False
        self._close(first, claimed=True)
        return True

    @property
    def kept(self) -> float:
        """Tokens of room that are not for newcomers now."""
        self._advance()
        rate = self._claim_rate.upper
        return rate * self._present_tokens + DEVIATIONS * math.sqrt(rate * (1 - rate) * self._present_squares)

    def _advance(self) -> None:
        now = self._clock()
        while self._upcoming and self._upcoming[0][0] <= now + AHEAD_SECONDS:
            _, number, come = heapq.heappop(self._upcoming)
            self._present_tokens += come.tokens
            self._present_squares += come.tokens**2
            heapq.heappush(self._present, (come.until, number, come))
        while self._present and (not self._present[0][2].open or self._present[0][0] <= now):
            lapsed = heapq.heappop(self._present)[2]
            if lapsed.open:
                self._close(lapsed, claimed=False)

    def _close(self, reservation: Reservation, claimed: bool) -> None:
        reservation.open = False
        self._open -= 1
        self._present_tokens -= reservation.tokens
        self._present_squares -= reservation.tokens**2
        of_key = self._by_key[reservation.key]
        of_key.remove(reservation)
        if not of_key:
            del self._by_key[reservation.key]
        self._claim_rate.add(claimed)
