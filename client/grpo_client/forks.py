"""What cannot be shared with a forked child: threads, which stay behind; locks, which another thread may hold for good;
connections, on which two processes would read each other's answers. A child gets its own of each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """A value that each process has its own of, made at first use there.

    make: from the value of the process that forked, None in the first. It must take no lock of that value. There is no lock
    here either, for a fork may find any lock held; of two threads that come first at once, one's value is thrown away.
    """

    def __init__(self, make: Callable[[Value | None], Value]) -> None:
        self._make = make
        # Those of the processes before stay: letting go of another process's pools could wait for its threads.
        self._made = [(os.getpid(), make(None))]

    def get(self) -> Value:
        """This process's."""
        if (value := self.made()) is None:
            value = self._make(self._made[-1][1])
            self._made.append((os.getpid(), value))
        return value

    def made(self) -> Value | None:
        """This process's, or None when it has not been asked for here."""
        pid, value = self._made[-1]
        return value if pid == os.getpid() else None
