"""When to try again, how long to wait first, and when to give up: tenacity, told our rules.

Tried again: no answer at all, 429, 502, 503, 504. Scoring is a pure function, so a request that was perhaps already
computed may be sent twice. Never tried again: what fails for a reason of its own (400, 401, 403, 404, 409, 413, 422,
500). So a trainer outlives its server: kill it, start it again, and the step goes on.

The wait grows exponentially with jitter and is never shorter than the server's `Retry-After`. While another server is
ready there is no wait at all.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import tenacity

from grpo_client.errors import ConnectionFailed, DeadlineExceeded, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """max_wait: seconds from the first try after which no other is begun; 0 tries once.

    first_delay, max_delay: seconds; the wait before try n + 1 is min(max_delay, first_delay * 2**(n-1)), plus up to
    first_delay of jitter. clock: monotonic seconds (tests bring their own).
    """

    max_wait: float = 900.0
    first_delay: float = 0.25
    max_delay: float = 20.0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        for name in ("max_wait", "first_delay", "max_delay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more seconds, got {getattr(self, name)}")

    def retrying(
        self, sleep: Callable[[float], None], another_ready: Callable[[], bool], closed: Callable[[], bool]
    ) -> tenacity.Retrying:
        """For a thread. another_ready: whether some server is not set aside. closed: give up at once when true."""
        return tenacity.Retrying(sleep=sleep, **self._rules(another_ready, closed))

    def async_retrying(
        self, sleep: Callable[[float], Awaitable[None]], another_ready: Callable[[], bool], closed: Callable[[], bool]
    ) -> tenacity.AsyncRetrying:
        """The same for an event loop."""
        return tenacity.AsyncRetrying(sleep=sleep, **self._rules(another_ready, closed))

    def _rules(self, another_ready: Callable[[], bool], closed: Callable[[], bool]) -> dict[str, Any]:
        began = self.clock()
        backoff = tenacity.wait_exponential(self.first_delay, self.max_delay)
        jitter = tenacity.wait_random(0, self.first_delay)

        def wait(state: tenacity.RetryCallState) -> float:
            return 0.0 if another_ready() else max(backoff(state), asked_wait(_failure(state))) + jitter(state)

        def stop(state: tenacity.RetryCallState) -> bool:
            return closed() or self.clock() - began + state.upcoming_sleep >= self.max_wait

        def give_up(state: tenacity.RetryCallState) -> NoReturn:
            error = _failure(state)
            if self.max_wait == 0 or closed():
                raise error
            raise DeadlineExceeded(
                f"gave up after {state.attempt_number} tries in {self.clock() - began:.1f} s "
                f"(the next one would have been past max_wait={self.max_wait:g} s): {error}"
            ) from error

        return {
            "retry": tenacity.retry_if_exception(is_worth_another_try),
            "wait": wait,
            "stop": stop,
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
