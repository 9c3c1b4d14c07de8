"""Several runs in one picture: what a setting changes.

python -m grpo_training.compare plain=runs/plain orthograd=runs/orthograd --output compare.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from grpo_training.report.columns import WINDOW, column, running_mean
from grpo_training.report.metrics import read_records

PANELS = {
    "reward/mean": "Reward",
    "kl": "KL (nats per token)",
    "policy/entropy": "Entropy of the policy (nats)",
    "policy/grad_norm": "Gradient norm",
}
TAUGHT_PANELS = {
    "distill/loss": "Divergence from the teacher (nats per token)",
    "reward/correct": "Share of right answers",
    "distill/d_mean": "log q/p of sampled tokens (nats)",
    "distill/student_mass": "The student's mass on the teacher's best tokens",
}
# One token may be worth a hundred nats, and its gradient as much more than its neighbours'.
SPIKY = {"kl", "policy/grad_norm", "distill/loss"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def panels(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """What is drawn, and its title: of runs that all learn from a teacher's best tokens, what becomes of that."""
    taught = all(any("distill/loss" in record for record in records) for records in runs.values())
    return TAUGHT_PANELS if taught else PANELS


def draw(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Four panels, one colour a run: each step faintly, a running mean boldly. runs: label -> records."""
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, panels(runs).items(), strict=True):
        for i, (label, records) in enumerate(runs.items()):
            values = column(records, name)
            steps = [record["step"] for record in records][: len(values)]
            axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=1)
            axes.plot(steps, running_mean(values), color=f"C{i}", linewidth=2, label=label)
        if name in SPIKY and any((column(r, name) > 0).any() for r in runs.values()):
            axes.set_yscale("log")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="LABEL=DIRECTORY...", help="Output directories of runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture.")] = Path("compare.png"),
) -> None:
    """Draw reward, KL, entropy and gradient norm of several runs into one picture, and print the last steps' means; of
    runs that learn from a teacher, their divergence from it, right answers and masses."""
    named: dict[str, Sequence[Mapping[str, Any]]] = {}
    for run in runs:
        label, _, directory = run.partition("=")
        path = Path(directory or label) / "metrics.jsonl"
        if not path.is_file():
            raise typer.BadParameter(f"{path} is not there: give LABEL=DIRECTORY, the trainer.output of a run")
        named[label] = read_records(path)
    draw(named).savefig(output, dpi=130)
    console = Console()
    drawn = panels(named)
    table = Table("run", *drawn.values(), title=f"mean of the last {WINDOW} steps")
    for label, records in named.items():
        last = (column(records, name)[-WINDOW:] for name in drawn)
        table.add_row(label, *(f"{np.nanmean(v):.3f}" if np.isfinite(v).any() else "" for v in last))
    console.print(table, f"written: {output}")


if __name__ == "__main__":
    app()
