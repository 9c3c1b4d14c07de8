"""What a person sees of a run: metrics files, the report, the terminal."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from grpo_training.config import TrainConfig
from grpo_training.report.metrics import JsonLines, read_records
from grpo_training.report.plots import draw
from grpo_training.report.report import write_report
from grpo_training.report.summary import summarise
from grpo_training.run.progress import Display, sparkline
from grpo_training.run.step import Sample, StepReport
from rich.console import Console

CONFIG = TrainConfig.model_validate({"task": {"name": "basic_arithmetic"}})


def records(steps: int, *, kl: bool = True) -> list[dict[str, float]]:
    figures = {
        "reward/correct": 0.5,
        "completion/length": 8.0,
        "time/step_s": 2.0,
    }
    if kl:
        figures |= {"kl": 0.01, "reference/latency_s": 1.0, "time/reference_wait_s": 0.1}
    return [{"step": i, "reward/mean": i / steps, **figures} for i in range(steps)]


def test_json_lines_drop_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    for step in range(4):
        first.write(step, {"a": float(step)})
    first.close()
    path.write_text(path.read_text() + '{"step": 4, "a"')  # cut by a kill
    second = JsonLines(path, first_step=2)
    second.write(2, {"a": math.nan})
    second.close()
    assert read_records(path) == [{"step": 0, "a": 0.0}, {"step": 1, "a": 1.0}, {"step": 2, "a": None}]
    path.write_text('{"step"\n{"step": 1}\n')
    with pytest.raises(json.JSONDecodeError):
        read_records(path)


def test_one_spike_of_the_kl_flattens_no_other_step() -> None:
    spiked = records(60)
    spiked[20]["kl"] = 37.8
    axes = draw(spiked, title="").axes[1]
    low, top, most = axes.transData.transform([(0, 0), (0, 37.8), (0, 0.01)])[:, 1]
    assert (most - low) / (top - low) > 0.02  # on a linear axis 0.0003
    faint, bold = (line.get_ydata() for line in axes.lines)
    assert max(faint) == 37.8  # shown, where it was
    assert max(bold) == 0.01  # and followed by nothing


def test_summary() -> None:
    summary = summarise(records(40), CONFIG)
    assert summary["reward_first"] == pytest.approx(4.5 / 40)
    assert summary["reward_last"] == pytest.approx(34.5 / 40)
    assert summary["reward_gain"] == pytest.approx(0.75)
    assert summary["kl_finite"]
    assert summary["reference_wait_share"] == pytest.approx(0.05)
    broken = records(3)
    broken[1]["kl"] = None  # type: ignore[assignment]
    assert not summarise(broken, CONFIG)["kl_finite"]
    bare = summarise(records(3, kl=False), CONFIG)
    unmeasured = ("kl_last", "kl_max", "kl_finite", "reference_wait_share", "unscored", "steps_skipped")
    assert [bare[name] for name in unmeasured] == [None] * len(unmeasured)
    assert summarise([], CONFIG)["reward_gain"] is None


def test_the_summary_tells_what_was_not_measured() -> None:
    """Of three steps the first is whole, the second had no rewards and the third a KL that was not finite."""
    steps = records(3)
    for step, (skipped, unmeasured) in zip(steps, ((0.0, 1.0), (1.0, 16.0), (1.0, 0.0)), strict=True):
        step |= {"policy/skipped": skipped, "reward/unmeasured": unmeasured, "reference/unscored": 2.0}
    steps[1]["reward/mean"] = None  # type: ignore[assignment]
    del steps[1]["kl"]
    summary = summarise(steps, CONFIG)
    assert (summary["steps_skipped"], summary["rewards_unmeasured"], summary["unscored"]) == (2, 17, 6)
    assert summary["reward_last"] == pytest.approx((steps[0]["reward/mean"] + steps[2]["reward/mean"]) / 2)
    assert summary["kl_finite"] is True  # where it was measured
    steps[2]["kl"] = None  # type: ignore[assignment]
    assert summarise(steps, CONFIG)["kl_finite"] is False
    for step in steps:
        step["reward/mean"] = None  # type: ignore[assignment]
    nothing = summarise(steps, CONFIG)
    assert (nothing["reward_first"], nothing["reward_last"], nothing["reward_gain"]) == (None, None, None)
    json.loads(json.dumps(nothing, allow_nan=False))


def test_what_is_not_known_is_null_at_any_depth_and_has_a_page(tmp_path: Path) -> None:
    metrics, samples = JsonLines(tmp_path / "metrics.jsonl"), JsonLines(tmp_path / "samples.jsonl")
    metrics.write(0, {**records(1)[0], "reward/mean": math.nan})
    samples.write(0, {"prompt": "p", "completions": ["a", "b"], "rewards": [math.nan, 1.0]})
    metrics.close()
    samples.close()
    text = (tmp_path / "samples.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["rewards"] == [None, 1.0]
    summary = write_report(tmp_path, CONFIG, reference=None, seconds=1.0)
    assert summary["reward_first"] is None
    assert "not measured" in (tmp_path / "report.html").read_text()
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)


def test_the_picture_shows_what_there_is() -> None:
    panels = draw(records(30), title="t").axes
    assert [len(axes.lines) for axes in panels] == [4, 2, 2, 4]
    assert panels[0].lines[1].get_ydata()[-1] == pytest.approx(24.5 / 30)  # mean of the last ten
    assert [len(axes.lines) for axes in draw(records(30, kl=False), title="t").axes] == [4, 0, 2, 0]
    held_out = [{"step": n, "eval/sums/reward": n / 30, "eval/sums/length": 3.0} for n in (0, 10, 30)]
    panels = draw(records(30), title="t", evaluations=held_out).axes
    assert [len(axes.lines) for axes in panels] == [5, 2, 3, 4]
    assert panels[0].lines[-1].get_xdata().tolist() == [0, 10, 30]
    assert panels[0].lines[-1].get_ydata()[-1] == 1.0


def test_the_page_shows_completions_as_text_and_not_as_html(tmp_path: Path) -> None:
    metrics, samples = JsonLines(tmp_path / "metrics.jsonl"), JsonLines(tmp_path / "samples.jsonl")
    for record in records(3):
        metrics.write(int(record["step"]), record)
    samples.write(0, {"prompt": "<|user|>", "completions": ["<script>"], "rewards": [1.0]})
    metrics.close()
    samples.close()
    write_report(tmp_path, CONFIG, reference={"model": "m"}, seconds=1.0)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"


@pytest.mark.parametrize("terminal", [True, False])
def test_display(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    figures = {k: v for k, v in records(2)[1].items() if k != "step"}
    with Display(console) as display:
        display.started(CONFIG, 0, "the-reference")
        display.stepped(0, StepReport(figures, [Sample("1 + 1 [b]", [" 2[/b]"], [1.0])]))
        display.saved(Path("checkpoints/step-000001"))
    shown = out.getvalue()
    assert "the-reference" in shown
    assert "reward" in shown
    assert "step-000001" in shown
    assert "that is of the step" in shown
    assert f"{figures['time/reference_wait_s'] / figures['time/step_s']:.1%}" in shown
    assert (" 2[/b]" in shown) is terminal  # markup in a completion is text, and only a terminal shows samples
