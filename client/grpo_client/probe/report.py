"""What the probe found, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from grpo_client.probe.checks import Finding, Verdict

_STYLES = {Verdict.PASS: "green", Verdict.DIFFERS: "yellow", Verdict.FAIL: "bold red", Verdict.SKIP: "dim"}


def as_table(title: str, findings: Sequence[Finding]) -> Table:
    table = Table("check", "verdict", "largest", "mean", "note", title=title, title_justify="left")
    for f in findings:
        figures = [f"{v:.1e}" if v is not None else "" for v in (f.largest, f.mean)]
        table.add_row(f.check, Text(f.verdict.value, _STYLES[f.verdict]), *figures, Text(f.note))
    return table


def as_json(url: str, dialect: str, against: str, tolerance: float, findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "url": url,
        "dialect": dialect,
        "against": against,
        "tolerance": tolerance,
        "passed": passed(findings),
        "findings": [asdict(f) for f in findings],
    }


def passed(findings: Sequence[Finding]) -> bool:
    """No check failed. Different bits within the tolerance are shown and are no failure."""
    return all(f.verdict is not Verdict.FAIL for f in findings)
