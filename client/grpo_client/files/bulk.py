"""Scoring a stream of rollouts: many in flight, results in order, one bad rollout no reason to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from grpo_client.client import ReferenceClient
from grpo_client.errors import GrpoClientError, ProtocolError, RequestRefused, ServerFailed
from grpo_client.files.rollouts import Rollout, ScoreDefaults, read_rollout
from grpo_client.protocol import ScoreResult


@dataclass(frozen=True, slots=True)
class LineFailed:
    """A line that cannot be scored, and why."""

    line: int
    error: GrpoClientError


@dataclass(frozen=True, slots=True)
class LineScored:
    """A line and its scores."""

    rollout: Rollout
    result: ScoreResult


def score_lines(
    client: ReferenceClient, lines: Iterable[tuple[int, bytes]], defaults: ScoreDefaults, window: int
) -> Iterator[LineScored | LineFailed]:
    """Score numbered lines, at most `window` of them read ahead; outcomes come in the lines' order.

    A line's own fault (it is broken, the server refuses it or fails over it) is a LineFailed. What would befall every
    line (no server, wrong key, another reference) is raised.
    """
    waiting: deque[tuple[Rollout, Future[ScoreResult]] | LineFailed] = deque()
    for number, line in lines:
        try:
            rollout = read_rollout(number, line, defaults)
            waiting.append((rollout, client.submit_request(rollout.request)))
        except ProtocolError as error:
            waiting.append(LineFailed(number, error))
        if len(waiting) >= window:
            yield _outcome(waiting.popleft())
    while waiting:
        yield _outcome(waiting.popleft())


def _outcome(entry: tuple[Rollout, Future[ScoreResult]] | LineFailed) -> LineScored | LineFailed:
    if isinstance(entry, LineFailed):
        return entry
    rollout, future = entry
    try:
        return LineScored(rollout, future.result())
    except (ProtocolError, RequestRefused, ServerFailed) as error:
        return LineFailed(rollout.line, error)
