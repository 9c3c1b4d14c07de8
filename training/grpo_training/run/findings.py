"""Tells of a sick run while it runs: the rules of `grpo-client check` over what the steps leave, each told of once.

The first steps are checked often and the others seldom: after steps 1, 2, 4, 8 and so on, and every 50.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from grpo_client.findings import ENOUGH, Finding, Verdict, check_metrics, check_samples, samples_of

from grpo_training.run.samples import Sample

logger = logging.getLogger(__name__)

_EVERY = 50  # steps
_RECENT = 64  # groups that are kept beside those of the first step
_STEPS = 2000  # figures that are kept


class RunFindings:
    """Takes each step's figures and samples; warns when a rule first fires."""

    def __init__(self) -> None:
        self._first: list[dict[str, Any]] = []
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._figures: deque[dict[str, Any]] = deque(maxlen=_STEPS)
        self._told: set[str] = set()

    def write(self, step: int, figures: Mapping[str, float], samples: list[Sample]) -> None:
        """Step `step` (from 0) is done."""
        self._figures.append({"step": step, **figures})
        records = [{"step": step, **sample.record()} for sample in samples if sample.tokens is not None]
        if step == 0:
            self._first += records[:_RECENT]
        else:
            self._recent += records
        done = step + 1
        if done & (done - 1) == 0 or done % _EVERY == 0:
            for finding in self._findings():
                self._tell(done, finding)

    def _findings(self) -> list[Finding]:
        found = check_metrics(list(self._figures))
        if records := [*self._first, *self._recent]:
            found += check_samples(samples_of(enumerate(records, start=1)))
        return found

    def _tell(self, done: int, finding: Finding) -> None:
        if finding.verdict not in (Verdict.CHECK, Verdict.LOOK) or finding.name in self._told:
            return
        if finding.unit == "tokens" and finding.n < ENOUGH:
            return  # a few tokens prove nothing; there will be more
        self._told.add(finding.name)
        logger.warning("after step %d, %s: %s. %s", done, finding.verdict.value, finding.says, finding.remedy)
