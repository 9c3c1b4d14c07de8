"""A run, seen in the terminal: a progress bar, the latest figures beside their start, and what the policy says.

Where the output is not a terminal (a log file, CI) one line is written per step instead.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from grpo_training.config import TrainConfig
from grpo_training.run.step import Sample, StepReport

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 48  # characters of a sparkline
_SMOOTH = 10  # steps behind a smoothed figure

# Figure, heading, format.
_ROWS = (
    ("reward/mean", "reward", "{:.3f}"),
    ("reward/correct", "correct", "{:.3f}"),
    ("kl", "KL", "{:.4f}"),
    ("distill/loss", "divergence from the teacher", "{:.4f}"),
    ("distill/d_mean", "log q/p of a sampled token", "{:.4f}"),
    ("completion/length", "completion length", "{:.1f}"),
    ("policy/entropy", "entropy", "{:.2f}"),
    ("reference/latency_s", "reference latency, s", "{:.2f}"),
    ("time/reference_wait_s", "waited for it, s", "{:.2f}"),
    ("reference/share", "that is of the step", "{:.1%}"),
    ("time/teacher_wait_s", "waited for the teacher, s", "{:.2f}"),
    ("time/step_s", "step, s", "{:.2f}"),
)


class Display:
    """An observer of `loop.train` and a context manager: `with Display(console) as display: train(..., observer=display)`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._history: dict[str, deque[float]] = {name: deque(maxlen=_WIDTH) for name, _, _ in _ROWS}
        self._sample: Sample | None = None
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("steps", total=None)
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None:
        self._progress.update(self._bar, total=config.trainer.steps, completed=first_step)
        asked = f"against {reference} at {', '.join(config.reference.urls)}" if reference else "without a reference"
        if config.distillation is not None:
            by = config.distillation.targets or ", ".join(config.distillation.teachers)
            asked += f", taught ({config.distillation.kind}) by {by}"
        go_on = f", going on at step {first_step}" if first_step else ""
        self._console.print(f"training {config.model.name} {asked}{go_on}", highlight=False, markup=False)

    def stepped(self, step: int, report: StepReport) -> None:
        figures = _with_share(report.figures)
        for name, values in self._history.items():
            if math.isfinite(figures.get(name, math.nan)):
                values.append(figures[name])
        self._sample = report.samples[0]
        self._progress.update(self._bar, completed=step + 1)
        if not self._console.is_terminal:
            shown = "  ".join(
                f"{heading} {form.format(figures[name])}" for name, heading, form in _ROWS if name in figures
            )
            self._console.print(f"step {step + 1:4d}  {shown}", highlight=False, markup=False, soft_wrap=True)

    def evaluated(self, done: int, figures: dict[str, float]) -> None:
        shown = "  ".join(f"{name.removeprefix('eval/')} {v:.3f}" for name, v in figures.items() if "eval/" in name)
        self._console.print(f"evaluation after step {done}  {shown}", highlight=False, markup=False, soft_wrap=True)

    def saved(self, path: Path) -> None:
        self._console.print(f"checkpoint {path}", highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        table.add_column("")
        table.add_column("now", justify="right")
        table.add_column(f"mean of {_SMOOTH}", justify="right")
        table.add_column("")
        for name, heading, form in _ROWS:
            values = list(self._history[name])
            if values:
                recent = values[-_SMOOTH:]
                mean = sum(recent) / len(recent)
                table.add_row(heading, form.format(values[-1]), form.format(mean), sparkline(values))
        parts: list[RenderableType] = [self._progress, table]
        if self._sample is not None:
            parts.append(
                Panel(_shown(self._sample), title="a group of this step", title_align="left", border_style="dim")
            )
        return Group(*parts)


def _with_share(figures: Mapping[str, float]) -> dict[str, float]:
    """What the reference costs: the share of a step that only waits for it."""
    wait, step = figures.get("time/reference_wait_s"), figures.get("time/step_s")
    return dict(figures) if wait is None or not step else {**figures, "reference/share": wait / step}


def sparkline(values: list[float]) -> str:
    """Values as a row of blocks, the lowest the least, the highest the fullest."""
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((v - low) * scale)] for v in values)


def _shown(sample: Sample, limit: int = 4) -> Text:
    text = Text(sample.prompt.strip().replace("\n", " ") + "\n", style="dim")
    for k, (completion, reward) in enumerate(list(zip(sample.completions, sample.rewards, strict=True))[:limit]):
        text.append(f"{reward:5.2f}  ", style="green" if reward > 0 else "red")
        turns = sample.turns[k] if sample.turns else [{"role": "assistant", "content": completion}]
        line = Text()
        for turn in turns:  # what an environment said is dim, as the prompt is
            line.append(repr(turn["content"])[1:-1], style="default" if turn["role"] == "assistant" else "dim")
        line.truncate(100)
        text.append_text(line).append("\n")
    text.rstrip()
    return text
