"""When those who were refused are told to come back: one after the other, at the speed at which room comes free."""

from __future__ import annotations

from collections.abc import Callable

SLOT_SECONDS = 1.0
# Nothing is promised further ahead: a flood of refusals must not fill memory, nor be searched through at every next one.
HORIZON_SECONDS = 3600.0


class Timeline:
    """What is promised to the seconds ahead, in slots of one second; slots that have passed are forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._promised: dict[int, float] = {}  # slot -> tokens
        self._current = 0

    def place(self, tokens: int, seconds: float, tokens_per_second: float) -> float:
        """Seconds from now, `seconds` or more, to the first moment that is not promised to others; it is promised then,
        unless HORIZON_SECONDS or more come back.

        tokens_per_second: how much may be promised to a second: more than is computed in one where not everybody comes.
        """
        now = self._clock()
        self._forget(int(now / SLOT_SECONDS))
        room = tokens_per_second * SLOT_SECONDS
        earliest = now + seconds
        slot, last = int(earliest / SLOT_SECONDS), int((now + HORIZON_SECONDS) / SLOT_SECONDS)
        used = max(self._promised.get(slot, 0.0), (earliest / SLOT_SECONDS - slot) * room)
        while used >= room and slot < last:
            slot += 1
            used = self._promised.get(slot, 0.0)
        if slot >= last:
            return max(seconds, HORIZON_SECONDS)
        due = (slot + used / room) * SLOT_SECONDS
        rest = float(tokens)
        while rest > 0 and slot < last:  # a large one takes several seconds to compute
            taken = min(rest, max(0.0, room - used))
            self._promised[slot] = used + taken
            rest -= taken
            slot += 1
            used = self._promised.get(slot, 0.0)
        return max(seconds, min(due - now, HORIZON_SECONDS))

    def _forget(self, current: int) -> None:
        if current != self._current:
            self._current = current
            self._promised = {slot: tokens for slot, tokens in self._promised.items() if slot >= current}
