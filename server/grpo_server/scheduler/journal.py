"""What became of one request, step by step, for whoever wants to know: a list that the scheduler writes into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Step:
    """queue: from acceptance to the first batch. prepare, compute: of a batch that the request has a part in; tokens and
    requests are the batch's. Times in seconds of the scheduler's clock."""

    name: Literal["queue", "prepare", "compute"]
    start: float
    end: float
    tokens: int
    requests: int


Journal = list[Step]


def note(journals: Sequence[Journal | None], step: Step) -> None:
    """Write a step into all of these that are kept."""
    for journal in journals:
        if journal is not None:
            journal.append(step)
