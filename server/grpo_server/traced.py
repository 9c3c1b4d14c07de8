"""The steps of a request as spans: queue, prepare and compute, from the scheduler's journal."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from grpo_client import tracing

from grpo_server.scheduler.journal import Journal

NANOSECONDS = 1e9


@contextmanager
def traced_steps() -> Generator[Journal | None]:
    """A journal to hand to the scheduler; what it says becomes spans, however the request ends. None: nothing is traced."""
    if not tracing.recording():
        yield None
        return
    journal: Journal = []
    try:
        yield journal
    finally:
        to_wall_clock = time.time_ns() - time.monotonic_ns()
        for step in journal:
            start, end = (round(at * NANOSECONDS) + to_wall_clock for at in (step.start, step.end))
            attributes = {"grpo.tokens": step.tokens, "grpo.requests": step.requests}
            tracing.past_span(step.name, start, end, attributes)
