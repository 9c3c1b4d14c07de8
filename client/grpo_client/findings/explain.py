"""Which change explains the gap? The reference scores a few thousand tokens again under one hypothesis after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from grpo_client.errors import RequestRefused
from grpo_client.findings.finding import Finding, Rule
from grpo_client.findings.pairs import POLICY, lacking
from grpo_client.findings.prompt_changes import prompt_changes
from grpo_client.findings.rescoring import Changed, Progress, Served, normalizer_of, rescore, rows_within
from grpo_client.findings.samples import Samples
from grpo_client.protocol import Normalizer

_TOKENS = 4096  # that each hypothesis scores
_FLOOR = 5e-4  # nats: a smaller gap is the noise of float32, and needs no explanation
_FACTOR = 10  # by which a change must shrink the gap to explain it
_TEMPERATURES = tuple(round(0.5 + 0.1 * i, 1) for i in range(11))
_REFINED = (0.05, 0.02, 0.01)  # steps around the best of them

EXPLAIN = Rule(
    "explain",
    "there is no gap to explain",
    "At step 0 the reference scores up to 4,096 tokens under other temperatures, prompts and StableMax. Check: under one of "
    "them median |r - t| falls to a tenth.",
    "Do on the policy's side what the reference does, or the other way round: the change that is named is the difference.",
)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What the policy may have done differently: in words, and how the reference does it too."""

    says: str
    prompt: Changed = lambda ids: ids
    temperature: float | None = None
    normalizer: Normalizer | None = None


def explain(samples: Samples, served: Served, tell: Progress) -> Finding:
    """Rule 4, at step 0, or over the whole file where it counts no steps."""
    if POLICY not in samples.columns:
        return EXPLAIN.needs(lacking(samples, POLICY))
    rows = rows_within(samples, _TOKENS, step=0)
    if not len(rows):
        rows = rows_within(samples, _TOKENS, step=-1)
    if not len(rows):
        return EXPLAIN.needs("step 0, with prompt_ids and completion_ids")

    def gap(hypothesis: Hypothesis) -> float:
        tell(f"what if {hypothesis.says}?")
        try:
            again = rescore(
                samples,
                served,
                rows,
                prompt=hypothesis.prompt,
                temperature=hypothesis.temperature,
                normalizer=hypothesis.normalizer,
            )
        except RequestRefused:  # a prompt that becomes empty or too long explains nothing
            return np.inf
        d = again.logprobs - samples.columns[POLICY]
        return float(np.median(np.abs(d[np.isfinite(d)]))) if np.isfinite(d).any() else np.inf

    n = int(samples.lengths[rows].sum())
    as_is = gap(Hypothesis("nothing differs"))
    if as_is <= _FLOOR:
        return EXPLAIN.passes(n, {"as_is": as_is}, enough=1)
    tried = [(gap(hypothesis), hypothesis) for hypothesis in _changes(samples, served)]
    tried += _temperatures(gap)
    left, best = min(tried, key=lambda pair: pair[0])
    if left * _FACTOR > as_is:
        return EXPLAIN.needs(
            f"another idea: no change that was tried explains the gap of {as_is:.2g} nats; the best, that {best.says}, "
            f"leaves {left:.2g}"
        )
    says = f"{best.says}: with that median |r - t| falls from {as_is:.2g} to {left:.2g} nats"
    return EXPLAIN.fires(says, n, {"as_is": as_is, "explained": left})


def _changes(samples: Samples, served: Served) -> Iterator[Hypothesis]:
    if any(normalizer_of(samples, g) == "softmax" for g in range(len(samples.records))):
        yield Hypothesis("the policy normalises by StableMax", normalizer="stablemax")
    else:
        yield Hypothesis("the policy normalises by softmax", normalizer="softmax")
    for says, change in prompt_changes(samples, served):
        yield Hypothesis(says, prompt=change)


def _temperatures(gap: Callable[[Hypothesis], float]) -> list[tuple[float, Hypothesis]]:
    """A grid, then smaller and smaller steps around its best."""

    def at(temperature: float) -> tuple[float, Hypothesis]:
        hypothesis = Hypothesis(f"the policy's temperature is {temperature:g}", temperature=temperature)
        return gap(hypothesis), hypothesis

    tried = [at(temperature) for temperature in _TEMPERATURES]
    for step in _REFINED:
        best = min(tried, key=lambda pair: pair[0])[1].temperature
        assert best is not None
        tried += [at(round(best + sign * step, 2)) for sign in (-1, 1)]
    return tried
