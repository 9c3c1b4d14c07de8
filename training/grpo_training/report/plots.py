"""The pictures of a run: four panels, each step faintly, a running mean boldly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_training.report.columns import WINDOW, column, running_mean, running_median
from grpo_training.report.summary import held_out

KL_LINEAR = 0.01  # nats per token up to which the axis of the KL is linear


def draw(records: Sequence[Mapping[str, Any]], *, title: str, evaluations: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Reward, KL, completion length and reference latency by step: each step faintly, a running mean boldly (of the
    KL a running median).

    evaluations: their records, step being the number of steps done. Rewards and lengths are marked in the same panels.
    """
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    figure.suptitle(title, fontsize=14)
    reward, kl, length, latency = figure.subplots(2, 2).flat
    steps = np.array([r["step"] for r in records])
    _curve(reward, steps, column(records, "reward/mean"), "#2563eb", "reward")
    _curve(reward, steps, column(records, "reward/correct"), "#16a34a", "correct")
    reward.set(title="Reward", ylim=(-0.02, None))
    _curve(
        kl, steps, column(records, "kl"), "#dc2626", f"KL to the reference, median of {WINDOW} steps", running_median
    )
    _curve(kl, steps, column(records, "distill/d_mean"), "#2563eb", "log q/p of a sampled token, teacher p")
    _curve(kl, steps, column(records, "distill/loss"), "#16a34a", "divergence from the teacher")
    # k3 is exponential: one token that the reference finds all but impossible would flatten every other step
    kl.set_yscale("symlog", linthresh=KL_LINEAR)
    kl.yaxis.set_major_formatter("{x:g}")
    taught = any("teacher/latency_s" in record for record in records)
    kl.set(title=f"KL{', teacher' * taught} (nats per token, logarithmic from {KL_LINEAR} on)")
    _curve(length, steps, column(records, "completion/length"), "#7c3aed", "mean")
    length.set(title="Completion length (tokens)", ylim=(0, None))
    _curve(latency, steps, 1e3 * column(records, "reference/latency_s"), "#ea580c", "answered after")
    _curve(latency, steps, 1e3 * column(records, "time/reference_wait_s"), "#0f766e", "of that waited for")
    _curve(latency, steps, 1e3 * column(records, "teacher/latency_s"), "#2563eb", "teacher: answered after")
    _curve(latency, steps, 1e3 * column(records, "time/teacher_wait_s"), "#16a34a", "teacher: of that waited for")
    latency.set(title=f"Latency of the reference{' and teacher' * taught} (ms)", ylim=(0, None))
    for axes, figure_name in ((reward, "reward"), (length, "length")):
        for name in held_out(evaluations):
            points = column(evaluations, f"eval/{name}/{figure_name}")
            done = [r["step"] for r in evaluations]
            axes.plot(done, points, marker="o", markersize=4, linewidth=1, linestyle="--", label=f"held out: {name}")
    for axes in (reward, kl, length, latency):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure


def _curve(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    colour: str,
    label: str,
    smooth: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    if len(values) != len(steps) or not len(values):
        return  # a run without a reference has no KL and no latency, nor one without a teacher what is told of it
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
    axes.plot(steps, (smooth or running_mean)(values), color=colour, linewidth=2, label=label)
