"""The report of a run: a picture of four panels, a page that holds it, and the figures as JSON.

    write_report(Path("runs/demo"), config, ...)  ->  report.png, report.html, summary.json

Everything is read back from the run's own `metrics.jsonl` and `samples.jsonl`, so a report can be made again at any time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_training.config import TrainConfig
from grpo_training.report.findings import findings_of
from grpo_training.report.metrics import EVALUATIONS, read_records
from grpo_training.report.page import page
from grpo_training.report.plots import draw
from grpo_training.report.summary import held_out, summarise


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
    findings = findings_of(samples, records)
    summary |= {"eval": held_out(evaluations), "findings": {f.name: f.verdict.value for f in findings}}
    taught = config.distillation and config.distillation.targets
    subject = f"distillation: {taught}" if taught else f"GRPO: {config.task.name or config.task.file}"
    title = f"{subject} · {config.model.name}"
    figure = draw(records, title=title, evaluations=evaluations)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    (output / "report.png").write_bytes(buffer.getvalue())
    (output / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    (output / "report.html").write_text(page(buffer.getvalue(), summary, samples, findings, config), encoding="utf-8")
    return summary
