"""Whose turn it is where several engines have work waiting: the one that was given least.

Each has a clock that runs with the tokens it is given; the lowest is next. One that comes, or comes back, begins where the
others are: it is next soon, and has saved nothing up. (Start-time fair queuing: Goyal, Vin and Cheng, SIGCOMM 1996.)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Knows those alone that had work waiting when it was last asked."""

    def __init__(self) -> None:
        self._given: dict[T, float] = {}
        self._last: T | None = None

    def next(self, waiting: Collection[T]) -> T | None:
        """Whose turn it is of those that wait, in their order where they are equal; never twice the same if there is such
        another. None: nobody waits."""
        known = [self._given[one] for one in waiting if one in self._given]
        begin = min(known, default=0.0)
        self._given = {one: self._given.get(one, begin) for one in waiting}
        self._last = min(waiting, key=lambda one: (self._given[one], one == self._last), default=None)
        return self._last

    def given(self, to: T, amount: float) -> None:
        """This much, in tokens."""
        if to in self._given:
            self._given[to] += amount
