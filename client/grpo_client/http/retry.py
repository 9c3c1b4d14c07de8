"""When to try again, how long to wait first, and when to give up: tenacity, told our rules.

Tried again: no answer at all, or one that changed on the way; 408, 429, 502, 503, 504, and a request that arrived changed.
Scoring is a pure function, so a request that was perhaps already computed may be sent twice. Never tried again: what fails
for a reason of its own (400, 401, 403, 404, 409, 413, 422, 500). So a trainer outlives its server: kill it, start it again,
and the step goes on.

The wait grows exponentially with jitter and is never shorter than the server's `Retry-After`. While another server is
ready there is no wait at all. What is waited for is said; see `retry_log`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import tenacity

from grpo_client.errors import ConnectionFailed, DeadlineExceeded, InvalidSetting, Unavailable
from grpo_client.http.retry_log import Retry, RetryLog

_MOST = {"max_wait": math.inf, "first_delay": 1e6, "max_delay": 1e6}  # seconds; no clock waits for longer at once


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """max_wait: seconds from the first try after which no other is begun; 0 tries once.

    first_delay, max_delay: seconds; the wait before try n + 1 is min(max_delay, first_delay * 2**(n-1)), plus up to
    first_delay of jitter. clock: monotonic seconds (tests bring their own). on_retry: called with a `Retry` before each
    wait, in place of the log; from several threads at once where requests run in several. For the error, limit: what
    max_wait is called where it was given; goal: what is waited for. since: the clock's time from which max_wait counts;
    None: each call's own first try.
    """

    max_wait: float = 900.0
    first_delay: float = 0.25
    max_delay: float = 20.0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    on_retry: Callable[[Retry], None] | None = field(default=None, repr=False)
    limit: str = field(default="max_wait", repr=False)
    goal: str = field(default="", repr=False)
    since: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("max_wait", "first_delay", "max_delay"):
            seconds: Any = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _MOST[name]:
                shown = self.limit if name == "max_wait" else name
                raise InvalidSetting(
                    f"{shown} must be 0 or more seconds (at most {_MOST[name]:g}), got {seconds!r:.40}"
                )

    def for_goal(self, goal: str, seconds: float | None, limit: str) -> RetryPolicy:
        """The same for all that `goal` takes together, from now on, for at most `seconds`, which the caller knows as
        `limit`; None: for max_wait."""
        own = self if seconds is None else replace(self, max_wait=seconds, limit=limit)
        return replace(own, goal=goal, since=self.clock())

    def retrying(
        self,
        sleep: Callable[[float], None],
        another_ready: Callable[[], bool],
        closed: Callable[[], bool],
        log: RetryLog | None = None,
    ) -> tenacity.Retrying:
        """For a thread. another_ready: whether some server is not set aside. closed: give up at once when true.

        log: says each failure once over all the calls that share it; by default a call has its own.
        """
        return tenacity.Retrying(sleep=sleep, **self._rules(another_ready, closed, log))

    def async_retrying(
        self,
        sleep: Callable[[float], Awaitable[None]],
        another_ready: Callable[[], bool],
        closed: Callable[[], bool],
        log: RetryLog | None = None,
    ) -> tenacity.AsyncRetrying:
        """The same for an event loop."""
        return tenacity.AsyncRetrying(sleep=sleep, **self._rules(another_ready, closed, log))

    def _rules(
        self, another_ready: Callable[[], bool], closed: Callable[[], bool], log: RetryLog | None
    ) -> dict[str, Any]:
        report = self.on_retry or (log or RetryLog(clock=self.clock)).failed
        began = self.clock() if self.since is None else self.since
        backoff = tenacity.wait_exponential(self.first_delay, self.max_delay)
        jitter = tenacity.wait_random(0, self.first_delay)

        def wait(state: tenacity.RetryCallState) -> float:
            return 0.0 if another_ready() else max(backoff(state), asked_wait(_failure(state))) + jitter(state)

        def stop(state: tenacity.RetryCallState) -> bool:
            return closed() or self.clock() - began + state.upcoming_sleep >= self.max_wait

        def say(state: tenacity.RetryCallState) -> None:
            waited = self.clock() - began
            left = self.max_wait - waited
            report(Retry(_failure(state), state.attempt_number, waited, state.upcoming_sleep, left))

        def give_up(state: tenacity.RetryCallState) -> NoReturn:
            error = _failure(state)
            if self.max_wait == 0 or closed():
                raise error
            tries = "1 try" if state.attempt_number == 1 else f"{state.attempt_number} tries"
            what = f" waiting for {self.goal}" if self.goal else ""
            raise DeadlineExceeded(
                f"gave up{what} after {tries} in {self.clock() - began:.1f} s "
                f"(the next one would have been past {self.limit}={self.max_wait:g} s): {error}"
            ) from error

        return {
            "retry": tenacity.retry_if_exception(is_worth_another_try),
            "wait": wait,
            "stop": stop,
            "before_sleep": say,
            "retry_error_callback": give_up,
        }


def is_worth_another_try(error: BaseException) -> bool:
    """Whether the same request may succeed later or elsewhere."""
    return isinstance(error, ConnectionFailed | Unavailable)


def asked_wait(error: BaseException) -> float:
    """The seconds that the server asked to wait; 0 when it did not ask."""
    return (error.retry_after or 0.0) if isinstance(error, Unavailable) else 0.0


def _failure(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None, "only failures are waited for"
    return error
