"""The page of a run: its picture, its figures, what the policy says, its settings. One file, nothing to load."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from grpo_client.findings import Finding

from grpo_training.config import TrainConfig
from grpo_training.report.columns import WINDOW
from grpo_training.report.findings import as_rows

NOT_MEASURED = "not measured"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
img {{ width: 100% }} table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ padding: .25rem .8rem; text-align: left;
border-bottom: 1px solid #e3e7ee; vertical-align: top }}
mark {{ background: #fdf0c4; color: #6b4e00 }} code, pre {{ font-size: 13px; white-space: pre-wrap }}
</style></head><body><h1>{title}</h1><p>{lead}</p><img alt="reward, KL, completion length and reference latency by step"
src="data:image/png;base64,{picture}"><h2>Figures</h2><table>{figures}</table>
<h2>Findings</h2><table>{findings}</table>
<h2>What it says</h2><table>{samples}</table><h2>Configuration</h2><pre>{config}</pre></body></html>
"""


def page(
    picture: bytes,
    summary: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    findings: Sequence[Finding],
    config: TrainConfig,
) -> str:
    """HTML. picture: a PNG. samples: records of `samples.jsonl`, of which the first, the middle and the last are shown."""
    numbers = {
        k: v for k, v in summary.items() if (v is None and k != "reference") or isinstance(v, bool | int | float)
    }
    for name, figures in summary["eval"].items():
        numbers |= {f"held out: {html.escape(name)}, {k}": v for k, v in figures.items()}
    shown = [samples[0], samples[len(samples) // 2], samples[-1]] if samples else []
    rows = "".join(
        f"<tr><td>step {s['step']}<br><code>{html.escape(s['prompt'])}</code></td><td><code>"
        + "<br>".join(
            f"{_short(r)} {_said(c, turns)}"
            for r, c, turns in zip(s["rewards"], s["completions"], s.get("turns") or repeat(None), strict=False)
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
        findings=as_rows(findings),
        samples=rows,
        config=html.escape(json.dumps(config.model_dump(mode="json"), indent=1)),
    )


def _said(completion: str, turns: Sequence[Mapping[str, str]] | None) -> str:
    """What the policy wrote, and marked what its environment put between."""
    if turns is None:
        return html.escape(repr(completion))
    parts = [(turn["role"] == "assistant", html.escape(repr(turn["content"])[1:-1])) for turn in turns]
    return "".join(text if own else f"<mark>{text}</mark>" for own, text in parts)


def _short(value: bool | int | float | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:.4g}" if isinstance(value, float) else str(value)
