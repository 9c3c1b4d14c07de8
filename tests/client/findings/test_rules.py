"""Every rule is explained on the page that people are sent to."""

from __future__ import annotations

from pathlib import Path

from grpo_client.findings import check, samples_of

PAGE = Path(__file__).parents[3] / "docs" / "debugging.md"


def test_the_page_has_a_row_for_each_rule() -> None:
    rows = [
        line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `") and line.count("|") == 4
    ]
    rules = [f.name for f in check(samples_of([]))]
    assert set(rules) <= set(rows)
    assert len(rules) == len(set(rules)) == 20
