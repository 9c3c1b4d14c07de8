"""What `grpo-client check` says of a run, for its report and its summary."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_client.findings import Finding, Verdict, check, samples_of

_WORDS = {Verdict.CHECK: "check", Verdict.LOOK: "look", Verdict.PASSED: "passed"}


def findings_of(samples: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """By the run's own files. samples: their records; groups of which only the text was kept say nothing here."""
    with_tokens = [record for record in samples if record.get("completion_ids") is not None]
    return check(samples_of(enumerate(with_tokens, start=1)), metrics=list(records)) if with_tokens else []


def as_rows(findings: Sequence[Finding]) -> str:
    """What fired in full, what passed by name, as rows of an HTML table."""
    fired = [f for f in findings if f.verdict in (Verdict.CHECK, Verdict.LOOK)]
    rows = [
        f"<tr><th>{_WORDS[f.verdict]}</th><td>{html.escape(f.says)} ({f.n:,} {f.unit})<br>"
        f"<small>{html.escape(f.remedy)}</small></td></tr>"
        for f in fired
    ]
    passed = ", ".join(f.name for f in findings if f.verdict is Verdict.PASSED)
    return "".join(rows) + f"<tr><th>passed</th><td>{html.escape(passed) or '-'}</td></tr>"
