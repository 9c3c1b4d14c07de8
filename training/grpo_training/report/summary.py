"""A run in a dozen figures."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from grpo_training.config import TrainConfig
from grpo_training.report.columns import WINDOW, column, largest, mean, total


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
        "steps_skipped": total(records, "policy/skipped"),
        "rewards_unmeasured": total(records, "reward/unmeasured"),
        "unscored": total(records, "reference/unscored"),
        **_taught(records),
        "seed": config.trainer.seed,
        "reward_first": mean(rewards[:WINDOW]),
        "reward_last": mean(rewards[-WINDOW:]),
        "reward_gain": _difference(mean(rewards[-WINDOW:]), mean(rewards[:WINDOW])),
        "correct_first": mean(correct[:WINDOW]),
        "correct_last": mean(correct[-WINDOW:]),
        "kl_last": mean(kl[-WINDOW:]),
        "kl_max": float(known_kl.max()) if len(known_kl) else None,
        "kl_finite": bool(np.isfinite(kl[kl_seen]).all()) if any(kl_seen) else None,
        "length_first": mean(column(records, "completion/length")[:WINDOW]),
        "length_last": mean(column(records, "completion/length")[-WINDOW:]),
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


def held_out(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Of each held-out task its first, last and best mean reward; None where it was not measured."""
    names = dict.fromkeys(key.split("/")[1] for record in evaluations for key in record if key.startswith("eval/"))
    rewards = {name: column(evaluations, f"eval/{name}/reward") for name in names}
    return {
        name: {"reward_first": mean(r[:1]), "reward_last": mean(r[-1:]), "reward_best": largest(r)}
        for name, r in rewards.items()
    }


def _taught(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run with a teacher has in addition."""
    if not any("teacher/unscored" in record for record in records):
        return {}
    figures: dict[str, Any] = {"untaught": total(records, "teacher/unscored")}
    for name in ("loss", "d_mean", "teacher_mass", "student_mass", "overlap", "clipped"):
        values = column(records, f"distill/{name}")
        if len(values):
            figures |= {f"distill_{name}_first": mean(values[:WINDOW]), f"distill_{name}_last": mean(values[-WINDOW:])}
    wait, whole = column(records, "time/teacher_wait_s"), column(records, "time/step_s")
    return figures | {"teacher_wait_share": float(np.nansum(wait) / whole.sum()) if len(wait) else None}


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
