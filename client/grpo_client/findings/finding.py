"""What a check of rollouts can say, and how each rule describes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

ENOUGH: Final = 200  # of whatever a rule counts: fewer are worth a look and prove nothing
SHOWN: Final = 50  # tokens that a finding points at


class Verdict(Enum):
    """check: something is wrong. look: a person should look. passed. needs_data: the file does not hold what it takes."""

    CHECK = "check"
    LOOK = "look"
    PASSED = "passed"
    NEEDS_DATA = "needs_data"


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule's answer.

    says: the sentence for people, with the figures in it. figures: the statistics by name. n: how many of `unit` they
    rest on. why: formula and threshold. remedy: what to do. tokens: (completion, position) to look at, completions counted
    over the whole file. steps: likewise, for what rests on metrics.
    """

    name: str
    verdict: Verdict
    says: str
    why: str
    remedy: str
    n: int = 0
    unit: str = "tokens"
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    tokens: tuple[tuple[int, int], ...] = ()
    steps: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For programs: the fields as they are, a figure that is not finite as None, which JSON calls null."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "says": self.says,
            "why": self.why,
            "remedy": self.remedy,
            "n": self.n,
            "unit": self.unit,
            "figures": {name: value if abs(value) < float("inf") else None for name, value in self.figures.items()},
            "tokens": [list(place) for place in self.tokens],
            "steps": list(self.steps),
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """What is the same each time a rule is asked. passed: the sentence when all is well."""

    name: str
    passed: str
    why: str
    remedy: str
    unit: str = "tokens"

    def fires(
        self,
        says: str,
        n: int,
        figures: Mapping[str, float],
        *,
        tokens: Sequence[tuple[int, int]] = (),
        steps: Sequence[int] = (),
        at_most: Verdict = Verdict.CHECK,
        enough: int = ENOUGH,
    ) -> Finding:
        """The statistic is beyond its threshold: check, or look where there is too little of it. at_most: LOOK for a rule
        that can only ever point."""
        verdict = at_most if n >= enough else Verdict.LOOK
        return Finding(
            self.name,
            verdict,
            says,
            self.why,
            self.remedy,
            n,
            self.unit,
            dict(figures),
            tuple(tokens[:SHOWN]),
            tuple(steps[:SHOWN]),
        )

    def passes(self, n: int, figures: Mapping[str, float], *, enough: int = ENOUGH) -> Finding:
        """Within the threshold: passed, or too little to say so."""
        if n < enough:
            return self.needs(f"{enough} {self.unit}; there are {n}")
        return Finding(self.name, Verdict.PASSED, self.passed, self.why, self.remedy, n, self.unit, dict(figures))

    def needs(self, what: str) -> Finding:
        """It could not be asked."""
        return Finding(self.name, Verdict.NEEDS_DATA, f"needs {what}", self.why, self.remedy, 0, self.unit)
