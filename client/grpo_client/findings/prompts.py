"""Do the policy and the reference see the same prompt?"""

from __future__ import annotations

import numpy as np

from grpo_client.findings.finding import ENOUGH, SHOWN, Finding, Rule
from grpo_client.findings.pairs import POLICY, REFERENCE, at_start, lacking, pairs
from grpo_client.findings.samples import Samples
from grpo_client.findings.statistics import share_in_bfloat16

SEQUENCES = 20  # that the template rule wants

TEMPLATE = Rule(
    "template",
    "first tokens are no stranger to the reference than the others",
    "Check: the median of r - t over first tokens is more than 1 nat below the median over the others, and negative in at "
    "least 80 % of 20 or more completions.",
    "Send the reference the very ids that the policy sampled from; look for a chat template that is applied on one side, a "
    "missing generation prompt, or a prompt that is cut at its end.",
    unit="completions",
)
NOISE_FLOOR = Rule(
    "noise_floor",
    "before the first update policy and reference agree to the noise of their arithmetic",
    "At step 0 the two are the same model. Check: median |r - t| over 5e-4 nats in float32, over 0.03 in bfloat16 or float16 "
    "(`precision` of the record; float32 where it says nothing).",
    "Compare what both are given: a BOS or a newline twice, a system turn that one side adds, another temperature, another "
    "checkpoint. `grpo-client check --url` re-scores under such changes and names the one that explains it. In a bfloat16 "
    'policy 0.015 is ordinary: write "precision": "bfloat16" into the records.',
)
_FLOORS = {"float32": 5e-4, "bfloat16": 0.03, "float16": 0.03}


def template(samples: Samples) -> Finding:
    """Rule 2, on the earliest steps that hold enough completions: later ones may have learned another first token."""
    at = pairs(samples)
    if at is None:
        return TEMPLATE.needs(lacking(samples, POLICY, REFERENCE))
    d = at.d
    position = samples.position[at.token]
    firsts = np.flatnonzero(position == 0)
    step = samples.token_step()[at.token]
    firsts = firsts[np.argsort(step[firsts], kind="stable")]
    if len(firsts) > SEQUENCES:  # all of the step that brings the 20th
        firsts = firsts[step[firsts] <= step[firsts[SEQUENCES - 1]]]
    others = np.flatnonzero(np.isin(at.sequence, at.sequence[firsts]) & (position > 0))
    if len(firsts) < SEQUENCES or not len(others):
        return TEMPLATE.needs(f"{SEQUENCES} completions of two tokens; there are {min(len(firsts), len(others))}")
    first, rest = float(np.median(d[firsts])), float(np.median(d[others]))
    below = float(np.mean(d[firsts] < 0))
    figures = {"median_first": first, "median_others": rest, "share_below_zero": below}
    if first - rest < -1 and below >= 0.8:
        says = f"the reference finds first tokens {rest - first:.1f} nats less likely than the policy does: another template?"
        return TEMPLATE.fires(says, len(firsts), figures, tokens=samples.places(at.token[firsts]), enough=SEQUENCES)
    return TEMPLATE.passes(len(firsts), figures, enough=SEQUENCES)


def noise_floor(samples: Samples) -> Finding:
    """Rule 3, at step 0."""
    at = at_start(samples)
    if at is None or not len(at):
        return NOISE_FLOOR.needs(lacking(samples, POLICY, REFERENCE))
    gap = float(np.median(np.abs(at.d)))
    limit = _limit(samples, at.t)
    figures = {"median_gap": gap, "threshold": limit}
    if gap > limit:
        says = (
            f"at step 0 policy and reference are {gap:.2g} nats apart in the median; their arithmetic allows {limit:g}"
        )
        order = np.argsort(-np.abs(at.d), kind="stable")
        return NOISE_FLOOR.fires(says, len(at), figures, tokens=samples.places(at.token[order[:SHOWN]]))
    return NOISE_FLOOR.passes(len(at), figures)


def _limit(samples: Samples, t: np.ndarray) -> float:
    said = next((r["precision"] for r in samples.records if r.get("precision") in _FLOORS), None)
    if said is None and len(t) >= ENOUGH and share_in_bfloat16(t) > 0.95:
        said = "bfloat16"
    return _FLOORS[said or "float32"]
