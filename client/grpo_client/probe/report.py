"""What the probe found, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from grpo_client.probe.checks import CheckResult, Outcome

_STYLES = {Outcome.PASS: "green", Outcome.DIFFERS: "yellow", Outcome.FAIL: "bold red", Outcome.SKIP: "dim"}


def as_table(title: str, results: Sequence[CheckResult]) -> Table:
    table = Table("check", "verdict", "largest", "mean", "note", title=title, title_justify="left")
    for result in results:
        figures = [f"{v:.1e}" if v is not None else "" for v in (result.largest, result.mean)]
        table.add_row(result.check, Text(result.verdict.value, _STYLES[result.verdict]), *figures, Text(result.note))
    return table


def as_json(url: str, dialect: str, against: str, tolerance: float, results: Sequence[CheckResult]) -> dict[str, Any]:
    return {
        "url": url,
        "dialect": dialect,
        "against": against,
        "tolerance": tolerance,
        "passed": passed(results),
        "findings": [asdict(result) for result in results],
    }


def passed(results: Sequence[CheckResult]) -> bool:
    """No check failed. Different bits within the tolerance are shown and are no failure."""
    return all(result.verdict is not Outcome.FAIL for result in results)
