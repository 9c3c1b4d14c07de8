"""Room kept for clients that were told when to come back, so that `Retry-After` proves right.

A refused request gets a time, and from then on room for a while. It is known again by its content, so no client needs to
carry a ticket. Not everybody comes back: a reservation counts by the share of them that was claimed before it was made, as
seats of an aeroplane do, and what nobody claims goes to newcomers.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

# Room is kept from so many seconds before the moment that was named: what a newcomer occupies now is not computed by then.
AHEAD_SECONDS = 1.0
# A sleep may end, and a clock may tick, this much early.
EARLY_SECONDS = 0.05
# How long after it a client may come: the network, its own jitter, a busy event loop.
GRACE_SECONDS = 2.0
# Weight of the past in the share of claimed reservations; what is added to it, because too few lost places cost a little
# idle room and too many a broken promise.
SHARE_MEMORY = 0.98
SHARE_MARGIN = 0.1
# More than this many are not kept in memory; who is refused beyond it is told a time all the same.
MAX_RESERVATIONS = 50_000


@dataclass(eq=False, slots=True)
class Reservation:
    """Of the request `key`, from `due` to `until` (seconds of the clock). expected: tokens times the chance that it comes."""

    key: bytes
    tokens: int
    expected: float
    due: float
    until: float
    open: bool = True


class Reservations:
    """Upcoming ones, those whose time has come, and the share of them that is claimed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._number = itertools.count()  # breaks ties in the heaps
        self._upcoming: list[tuple[float, int, Reservation]] = []
        self._present: list[tuple[float, int, Reservation]] = []
        self._by_key: dict[bytes, list[Reservation]] = {}
        self._upcoming_tokens = 0.0
        self._present_tokens = 0.0
        self._open = 0
        self._share = 1.0
        self.tokens = 0  # of all open ones, whether they are expected or not

    def __len__(self) -> int:
        """Open ones; some of them may have lapsed without anybody having looked since."""
        return self._open

    def reserve(self, key: bytes, tokens: int, seconds: float, latest: float) -> None:
        """Keep room from `seconds` to `latest` seconds from now, and a grace period longer."""
        self._advance()
        if self._open >= MAX_RESERVATIONS:
            return
        now = self._clock()
        expected = tokens * min(1.0, self._share + SHARE_MARGIN)
        made = Reservation(key, tokens, expected, now + seconds, now + latest + GRACE_SECONDS)
        heapq.heappush(self._upcoming, (made.due, next(self._number), made))
        self._upcoming_tokens += expected
        self._by_key.setdefault(key, []).append(made)
        self._open += 1
        self.tokens += tokens

    def claim(self, key: bytes) -> bool:
        """Whether this request was told to come now. Its reservation is used up."""
        self._advance()
        of_key = self._by_key.get(key)
        if of_key is None:
            return False
        first = min(of_key, key=lambda r: r.due)
        if first.due > self._clock() + EARLY_SECONDS:
            return False
        self._present_tokens -= first.expected
        self._close(first, claimed=True)
        return True

    @property
    def kept(self) -> float:
        """Tokens of room that are not for newcomers now."""
        self._advance()
        return self._present_tokens

    @property
    def expected(self) -> float:
        """Tokens that will still come by reservation, now or later."""
        self._advance()
        return self._present_tokens + self._upcoming_tokens

    def _advance(self) -> None:
        now = self._clock()
        while self._upcoming and self._upcoming[0][0] <= now + AHEAD_SECONDS:
            _, number, come = heapq.heappop(self._upcoming)
            self._upcoming_tokens -= come.expected
            self._present_tokens += come.expected
            heapq.heappush(self._present, (come.until, number, come))
        while self._present and (not self._present[0][2].open or self._present[0][0] <= now):
            lapsed = heapq.heappop(self._present)[2]
            if lapsed.open:
                self._present_tokens -= lapsed.expected
                self._close(lapsed, claimed=False)

    def _close(self, reservation: Reservation, claimed: bool) -> None:
        reservation.open = False
        self._open -= 1
        self.tokens -= reservation.tokens
        of_key = self._by_key[reservation.key]
        of_key.remove(reservation)
        if not of_key:
            del self._by_key[reservation.key]
        self._share = SHARE_MEMORY * self._share + (1 - SHARE_MEMORY) * claimed
