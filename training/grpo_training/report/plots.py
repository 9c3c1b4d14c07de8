"""The report of a run: a picture of four panels, a page that holds it, and the figures as JSON.

    write_report(Path("runs/demo"), config, ...)  ->  report.png, report.html, summary.json

Everything is read back from the run's own `metrics.jsonl` and `samples.jsonl`, so a report can be made again at any time.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_training.config import TrainConfig
from grpo_training.report.metrics import read_records

EVALUATIONS = "eval.jsonl"
NOT_MEASURED = "not measured"
WINDOW = 10  # steps that the summary and the smooth lines average over
KL_LINEAR = 0.1  # nats per token up to which the axis of the KL is linear

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
img {{ width: 100% }} table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ padding: .25rem .8rem; text-align: left;
border-bottom: 1px solid #e3e7ee; vertical-align: top }} code, pre {{ font-size: 13px; white-space: pre-wrap }}
</style></head><body><h1>{title}</h1><p>{lead}</p><img alt="reward, KL, completion length and reference latency by step"
src="data:image/png;base64,{picture}"><h2>Figures</h2><table>{figures}</table>
<h2>What it says</h2><table>{samples}</table><h2>Configuration</h2><pre>{config}</pre></body></html>
"""


def write_report(
    output: Path,
    config: TrainConfig,
    *,
    reference: Mapping[str, Any] | None,
    seconds: float,
    first_step: int = 0,
) -> dict[str, Any]:
    """Write report.png, report.html and summary.json into `output`; return the summary.

    reference: who answered. seconds: wall time of this process's part of the run, from `first_step` on.
    """
    records = read_records(output / "metrics.jsonl")
    samples = read_records(output / "samples.jsonl")
    evaluations = read_records(output / EVALUATIONS) if (output / EVALUATIONS).exists() else []
    summary = summarise(records, config, reference=reference, seconds=seconds, first_step=first_step)
    summary |= {"eval": _evaluated(evaluations)}
    title = f"GRPO: {config.task.name or config.task.file} · {config.model.name}"
    figure = draw(records, title=title, evaluations=evaluations)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    (output / "report.png").write_bytes(buffer.getvalue())
    (output / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    (output / "report.html").write_text(_page(buffer.getvalue(), summary, samples, config), encoding="utf-8")
    return summary


def summarise(
    records: Sequence[Mapping[str, Any]],
    config: TrainConfig,
    *,
    reference: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    first_step: int = 0,
) -> dict[str, Any]:
    """The run in a dozen figures. first/last are means over the first and last WINDOW steps.

    What was never measured is None: a mean of nothing is not 0, and a KL that nobody asked for is not finite. Counted are
    steps_skipped, which changed no weight, rewards_unmeasured and unscored, the completions that were left out.
    """
    rewards, correct = column(records, "reward/mean"), column(records, "reward/correct")
    kl, wait, whole = (column(records, n) for n in ("kl", "time/reference_wait_s", "time/step_s"))
    known_kl = kl[np.isfinite(kl)]
    # A step in which nothing could be scored has no such figure; one whose figure is null had it and it was not finite.
    kl_seen = ["kl" in record for record in records]
    return {
        "steps": len(records),
        "steps_skipped": _total(records, "policy/skipped"),
        "rewards_unmeasured": _total(records, "reward/unmeasured"),
        "unscored": _total(records, "reference/unscored"),
        "seed": config.trainer.seed,
        "reward_first": _mean(rewards[:WINDOW]),
        "reward_last": _mean(rewards[-WINDOW:]),
        "reward_gain": _difference(_mean(rewards[-WINDOW:]), _mean(rewards[:WINDOW])),
        "correct_first": _mean(correct[:WINDOW]),
        "correct_last": _mean(correct[-WINDOW:]),
        "kl_last": _mean(kl[-WINDOW:]),
        "kl_max": float(known_kl.max()) if len(known_kl) else None,
        "kl_finite": bool(np.isfinite(kl[kl_seen]).all()) if any(kl_seen) else None,
        "length_first": _mean(column(records, "completion/length")[:WINDOW]),
        "length_last": _mean(column(records, "completion/length")[-WINDOW:]),
        "step_s_median": float(np.median(whole)) if len(whole) else None,
        "reference_wait_share": float(np.nansum(wait) / whole.sum()) if len(wait) else None,
        "seconds_since_step": {"first_step": first_step, "seconds": round(seconds, 1)},
        "reference": None if reference is None else dict(reference),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "config": config.model_dump(mode="json"),
    }


def draw(records: Sequence[Mapping[str, Any]], *, title: str, evaluations: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Reward, KL, completion length and reference latency by step: each step faintly, a running mean boldly (of the
    KL a running median).

    evaluations: their records, step being the number of steps done. Rewards and lengths are marked in the same panels.
    """
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    figure.suptitle(title, fontsize=14)
    reward, kl, length, latency = figure.subplots(2, 2).flat
    steps = np.array([r["step"] for r in records])
    _line(reward, steps, column(records, "reward/mean"), "#2563eb", "reward")
    _line(reward, steps, column(records, "reward/correct"), "#16a34a", "correct")
    reward.set(title="Reward", ylim=(-0.02, None))
    _line(kl, steps, column(records, "kl"), "#dc2626", f"KL to the reference, median of {WINDOW} steps", running_median)
    # k3 is exponential: one token that the reference finds all but impossible would flatten every other step
    kl.set_yscale("symlog", linthresh=KL_LINEAR)
    kl.yaxis.set_major_formatter("{x:g}")
    kl.set(title=f"KL (nats per token, logarithmic from {KL_LINEAR} on)")
    _line(length, steps, column(records, "completion/length"), "#7c3aed", "mean")
    length.set(title="Completion length (tokens)", ylim=(0, None))
    _line(latency, steps, 1e3 * column(records, "reference/latency_s"), "#ea580c", "answered after")
    _line(latency, steps, 1e3 * column(records, "time/reference_wait_s"), "#0f766e", "of that waited for")
    latency.set(title="Reference latency (ms)", ylim=(0, None))
    for axes, figure_name in ((reward, "reward"), (length, "length")):
        for name in _evaluated(evaluations):
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


def _evaluated(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Of each held-out task its first, last and best mean reward; None where it was not measured."""
    names = dict.fromkeys(key.split("/")[1] for record in evaluations for key in record if key.startswith("eval/"))
    rewards = {name: column(evaluations, f"eval/{name}/reward") for name in names}
    return {
        name: {"reward_first": _mean(r[:1]), "reward_last": _mean(r[-1:]), "reward_best": _largest(r)}
        for name, r in rewards.items()
    }


def _line(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    colour: str,
    label: str,
    smooth: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    if len(values) != len(steps) or not len(values):
        return  # a run without a reference has no KL and no latency
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
    axes.plot(steps, (smooth or running_mean)(values), color=colour, linewidth=2, label=label)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each step and up to WINDOW - 1 before it; a step without a value does not count."""
    means = [_mean(window) for window in _windows(values)]
    return np.array([math.nan if mean is None else mean for mean in means])


def running_median(values: np.ndarray) -> np.ndarray:
    """Like running_mean; no single step moves it."""
    finite = [window[np.isfinite(window)] for window in _windows(values)]
    return np.array([float(np.median(window)) if len(window) else math.nan for window in finite])


def _windows(values: np.ndarray) -> list[np.ndarray]:
    return [values[max(0, i - WINDOW + 1) : i + 1] for i in range(len(values))]


def column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """One figure by step, NaN where a record holds null; empty when no record has it."""
    if not any(name in record for record in records):
        return np.empty(0)
    return np.array([math.nan if record.get(name) is None else record[name] for record in records], dtype=float)


def _mean(values: np.ndarray) -> float | None:
    """Of the finite ones; None where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _largest(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _total(records: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """A count over all steps; None where no step has it."""
    values = column(records, name)
    return int(np.nansum(values)) if len(values) else None


def _page(picture: bytes, summary: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], config: TrainConfig) -> str:
    numbers = {
        k: v for k, v in summary.items() if (v is None and k != "reference") or isinstance(v, bool | int | float)
    }
    for name, figures in summary["eval"].items():
        numbers |= {f"held out: {html.escape(name)}, {k}": v for k, v in figures.items()}
    shown = [samples[0], samples[len(samples) // 2], samples[-1]] if samples else []
    rows = "".join(
        f"<tr><td>step {s['step']}<br><code>{html.escape(s['prompt'])}</code></td><td><code>"
        + "<br>".join(
            f"{_short(r)} {html.escape(repr(c))}" for r, c in zip(s["rewards"], s["completions"], strict=True)
        )
        + "</code></td></tr>"
        for s in shown
    )
    return _PAGE.format(
        title=f"GRPO run, {summary['steps']} steps",
        lead=(
            f"Mean reward {_short(summary['reward_first'])} over the first {WINDOW} steps, "
            f"{_short(summary['reward_last'])} over the last {WINDOW}."
        ),
        picture=base64.b64encode(picture).decode(),
        figures="".join(f"<tr><th>{k}</th><td>{_short(v)}</td></tr>" for k, v in numbers.items()),
        samples=rows,
        config=html.escape(json.dumps(config.model_dump(mode="json"), indent=1)),
    )


def _short(value: bool | int | float | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:.4g}" if isinstance(value, float) else str(value)
