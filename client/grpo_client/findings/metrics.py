"""What the figures of a run's steps say: `metrics.jsonl` as `grpo-train` writes it, one record a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from grpo_client.findings.finding import Finding, Rule, Verdict
from grpo_client.findings.samples import Floats

Records = Sequence[Mapping[str, Any]]

_STEPS: Final = 10  # that a verdict wants, and over which a recent mean goes

KL_SPIKE = Rule(
    "kl_spike",
    "no step's KL stands out",
    "Check: a step's KL is more than 10 times the median of the run.",
    "Look at that step's samples and its gradient norm; the tokens that carry the KL are often one phrase.",
    unit="steps",
)
REFERENCE_WAIT = Rule(
    "reference_wait",
    "steps hardly wait for the reference",
    "time/reference_wait_s over time/step_s, over the run. Check above 10 %, look above 5 %.",
    "Give the reference more of the machine or another replica, send the groups earlier, or score in tensors and not in JSON. "
    "The server's own metrics tell queueing from computing.",
    unit="steps",
)
ENTROPY = Rule(
    "entropy_collapse",
    "the policy's entropy holds",
    "Check: the entropy of the last ten steps is below 10 % of that of the first ten.",
    "A policy without entropy explores nothing: raise beta or the temperature, add an entropy bonus, lower the learning rate.",
    unit="steps",
)
FLAT = Rule(
    "flat_groups",
    "most groups have something to learn from",
    "Look: over the last ten steps more than half of the groups have equal rewards.",
    "Filter prompts that are always or never solved, or resample such groups.",
    unit="steps",
)
CUT = Rule(
    "cut_completions",
    "most completions end by themselves",
    "Look: over the last ten steps more than 25 % of the completions were cut at the length limit.",
    "Raise rollout.max_new_tokens, or look whether the end token is lost on the way.",
    unit="steps",
)


def check_metrics(records: Records) -> list[Finding]:
    """Rules 11 (of steps), 12 and 14."""
    steps = np.array([int(r.get("step", i)) for i, r in enumerate(records)], dtype=np.int64)
    return [
        _kl_spike(records, steps),
        _reference_wait(records),
        _entropy(records),
        _share(FLAT, records, "reward/flat_groups", 0.5, "of the groups have equal rewards"),
        _share(CUT, records, "completion/ended", 0.25, "of the completions were cut", less_from_one=True),
    ]


def _kl_spike(records: Records, steps: np.ndarray) -> Finding:
    kl = _column(records, "kl")
    known = np.flatnonzero(np.isfinite(kl))
    if len(known) < _STEPS:
        return KL_SPIKE.needs(f"{_STEPS} steps with a KL; there are {len(known)}")
    median, top = float(np.median(kl[known])), int(known[np.argmax(kl[known])])
    times = float(kl[top]) / median if median > 0 else 0.0
    figures = {"largest": float(kl[top]), "median": median, "times_median": times}
    if times > 10:
        says = f"KL spike at step {steps[top]}: {kl[top]:.3g}, {times:.0f} x the median of the run"
        spikes = known[kl[known] > 10 * median]
        return KL_SPIKE.fires(says, len(known), figures, steps=steps[spikes].tolist(), enough=_STEPS)
    return KL_SPIKE.passes(len(known), figures, enough=_STEPS)


def _reference_wait(records: Records) -> Finding:
    wait, whole = _column(records, "time/reference_wait_s"), _column(records, "time/step_s")
    known = np.isfinite(wait) & np.isfinite(whole)
    if not known.any() or not whole[known].sum():
        return REFERENCE_WAIT.needs("time/reference_wait_s and time/step_s")
    share = float(wait[known].sum() / whole[known].sum())
    n, figures = int(known.sum()), {"share": share}
    if share > 0.05:
        at_most = Verdict.CHECK if share > 0.1 else Verdict.LOOK
        says = f"{share:.0%} of the time steps wait for the reference"
        return REFERENCE_WAIT.fires(says, n, figures, at_most=at_most, enough=1)
    return REFERENCE_WAIT.passes(n, figures, enough=1)


def _entropy(records: Records) -> Finding:
    entropy = _column(records, "policy/entropy")
    entropy = entropy[np.isfinite(entropy)]
    if len(entropy) < 2 * _STEPS:
        return ENTROPY.needs(f"{2 * _STEPS} steps with policy/entropy; there are {len(entropy)}")
    first, last = float(entropy[:_STEPS].mean()), float(entropy[-_STEPS:].mean())
    figures = {"first": first, "last": last}
    if last < 0.1 * first:
        says = f"the policy's entropy fell from {first:.2f} to {last:.2g} nats"
        return ENTROPY.fires(says, len(entropy), figures, enough=2 * _STEPS)
    return ENTROPY.passes(len(entropy), figures, enough=2 * _STEPS)


def _share(rule: Rule, records: Records, name: str, limit: float, what: str, *, less_from_one: bool = False) -> Finding:
    values = _column(records, name)
    values = values[np.isfinite(values)]
    if len(values) < _STEPS:
        return rule.needs(f"{_STEPS} steps with {name}; there are {len(values)}")
    mean = float(values[-_STEPS:].mean())
    share = 1 - mean if less_from_one else mean
    if share > limit:
        return rule.fires(f"{share:.0%} {what}", len(values), {"share": share}, at_most=Verdict.LOOK, enough=_STEPS)
    return rule.passes(len(values), {"share": share}, enough=_STEPS)


def _column(records: Records, name: str) -> Floats:
    values = (r.get(name) for r in records)
    return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=np.float64)
