"""Runs side by side: the picture has every run in every panel, and a wrong directory is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grpo_training.compare import PANELS, TAUGHT_PANELS, app, draw
from typer.testing import CliRunner


def run_of(directory: Path, reward: float) -> str:
    directory.mkdir()
    records = [
        {"step": n, "reward/mean": reward, "kl": 0.1 * n, "policy/entropy": None, "policy/grad_norm": 1.0}
        for n in range(1, 13)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(directory)


def test_two_runs_are_drawn_and_their_last_steps_printed(tmp_path: Path) -> None:
    a, b = run_of(tmp_path / "a", 0.25), run_of(tmp_path / "b", 0.75)
    done = CliRunner().invoke(app, [f"plain={a}", f"other={b}", "-o", str(tmp_path / "x.png")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "x.png").stat().st_size > 10_000
    assert "0.250" in done.output
    assert "0.750" in done.output


@pytest.mark.parametrize("panels", [PANELS, TAUGHT_PANELS])
def test_every_panel_has_a_line_of_means_for_each_run(panels: dict[str, str]) -> None:
    records = [dict.fromkeys(panels, 1.0) | {"step": n} for n in range(3)]
    for axes, title in zip(draw({"a": records, "b": records}).axes, panels.values(), strict=True):
        assert axes.get_title() == title
        assert [line.get_label() for line in axes.get_lines()[1::2]] == ["a", "b"]


def test_a_directory_without_a_run_is_named() -> None:
    done = CliRunner().invoke(app, ["a=nowhere"])
    assert done.exit_code == 2
    assert "nowhere/metrics.jsonl" in done.output.replace("\n", "")
