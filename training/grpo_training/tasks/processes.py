"""A function in processes of its own: several calls at once, and a call that takes too long is ended with its process."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from grpo_training.tasks.calling import Call
from grpo_training.tasks.outcomes import Failed, Outcome
from grpo_training.tasks.worker import serve


class Processes:
    """Runs the calls of one function. Processes start with the first call and stay until `close`."""

    def __init__(self, name: str, arguments: Mapping[str, Any] | None, count: int, timeout: float | None) -> None:
        """name, arguments: of the function, as in `resolve`. timeout: seconds for a call, from its start."""
        self._function = name, arguments
        self._count, self._timeout = count, timeout
        self._idle: list[_Worker] = []

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """The outcomes in the order of the calls."""
        outcomes: list[Outcome | None] = [None] * len(calls)
        waiting = deque(range(len(calls)))
        busy: dict[_Worker, int] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._count:
                    worker = self._idle.pop() if self._idle else _Worker(self._function)
                    place = waiting.popleft()
                    busy[worker] = place
                    worker.give(calls[place], self._timeout)
                soonest = min((w.deadline for w in busy if w.deadline is not None), default=None)
                # With a limit on the wait: a worker that begins sets its deadline when it says that it is ready.
                wait([w.pipe for w in busy], None if soonest is None else max(0.0, soonest - time.monotonic()))
                for worker in list(busy):
                    if (outcome := worker.outcome()) is not None:
                        outcomes[busy.pop(worker)] = outcome
                        (self._idle.append if worker.alive else _Worker.end)(worker)
        finally:
            for worker in busy:  # whoever interrupts this does not wait for them
                worker.end()
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        while self._idle:
            self._idle.pop().end()


class _Worker:
    """One process. deadline: of the call that it runs, on the monotonic clock; None while it starts or has no limit."""

    def __init__(self, function: tuple[str, Mapping[str, Any] | None]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads' locks
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *function), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False
        self._call: Call | None = None
        self._limit: float | None = None
        self.deadline: float | None = None
        self.alive = True

    def give(self, call: Call, limit: float | None) -> None:
        self._call, self._limit = call, limit
        if self._ready:
            self._send()

    def _send(self) -> None:
        assert self._call is not None
        self.deadline = None if self._limit is None else time.monotonic() + self._limit
        self.pipe.send((self._call.args, self._call.kwargs))

    def outcome(self) -> Outcome | None:
        """What became of the call, if that is known."""
        try:
            while self.pipe.poll():
                answer: Outcome | None = self.pipe.recv()
                if answer is not None:
                    self.deadline = None
                    return answer
                self._ready = True
                self._send()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.alive = False
            self._process.join()
            return Failed(f"its process ended with status {self._process.exitcode}")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.alive = False
            return Failed(f"it took longer than {self._limit:g} s")
        return None

    def end(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()
        self._process.close()
