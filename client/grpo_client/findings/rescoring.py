"""Asking the reference again: what the file lacks, and whether the file's figures are this reference's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from grpo_client.findings.finding import ENOUGH, SHOWN, Finding, Rule
from grpo_client.findings.pairs import REFERENCE
from grpo_client.findings.samples import Floats, Ints, Samples, SamplesError
from grpo_client.protocol import Extra, Normalizer, ScoreResult
from grpo_client.text import Prompt

MOST_TOKENS = 65_536  # that are scored again, the earliest steps first
_TEXTS = 64  # completions whose text is read back

SAME_REFERENCE = Rule(
    "same_reference",
    "the file's reference log-probs are what this server answers",
    "Check: median |file - server| over 1e-3 nats in float32, 0.03 where one of the two computes in fewer bits.",
    "The file was scored by another reference, at another temperature, or from other prompts: compare the fingerprints.",
)
RETOKENIZED = Rule(
    "retokenized",
    "text gives back the ids that were sampled",
    "Look: encode(decode(ids)) differs from ids in any of up to 64 completions.",
    "Score ids, never text: what is decoded and encoded again is often cut into other tokens than were sampled.",
    unit="completions",
)

Changed = Callable[[Ints], Ints]
Progress = Callable[[str], None]


class Served(Protocol):
    """What is asked of the server: `ReferenceClient` does it."""

    def score(
        self,
        prompts: Any,
        completions: Any,
        *,
        temperature: float | list[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: tuple[Extra, ...] = (),
    ) -> ScoreResult: ...

    def tokenize(
        self, text: Prompt, *, add_special_tokens: bool = True, add_generation_prompt: bool = True
    ) -> NDArray[np.int32]: ...

    def detokenize(self, ids: Any) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Rescored:
    """logprobs, entropy: (N,) float64, NaN where nothing was asked. rows: the completions that were."""

    logprobs: Floats
    entropy: Floats
    rows: Ints


def rows_within(samples: Samples, tokens: int, *, step: int | None = None) -> Ints:
    """Completions with ids and a prompt, the earliest steps first, until the budget of tokens is spent. step: of that alone."""
    chosen: list[int] = []
    for s in np.argsort(samples.step[samples.group], kind="stable").tolist():
        group = int(samples.group[s])
        there = samples.lengths[s] and samples.ids[samples.starts[s]] >= 0
        if samples.prompts[group] is None or not there:
            continue
        if step is not None and samples.step[group] != step:
            continue
        if (tokens := tokens - int(samples.lengths[s])) < 0:
            break
        chosen.append(int(s))
    return np.array(sorted(chosen), dtype=np.int64)


def rescore(
    samples: Samples,
    served: Served,
    rows: Ints,
    *,
    prompt: Changed = lambda ids: ids,
    temperature: float | None = None,
    normalizer: Normalizer | None = None,
) -> Rescored:
    """Score completions again, with other prompts, another temperature or normalizer than the file's where given."""
    logprobs = np.full(len(samples.ids), np.nan)
    entropy = logprobs.copy()
    by_normalizer: dict[Normalizer, list[int]] = {}
    for g in np.unique(samples.group[rows]).tolist():
        by_normalizer.setdefault(normalizer or normalizer_of(samples, int(g)), []).append(int(g))
    for said, groups in by_normalizer.items():
        members = [[int(s) for s in rows[samples.group[rows] == g]] for g in groups]
        result = served.score(
            [prompt(_prompt(samples, g)) for g in groups],
            [[samples.ids[samples.starts[s] : samples.starts[s + 1]] for s in of] for of in members],
            temperature=[temperature or float(samples.temperature[g]) for g in groups],
            normalizer=said,
            extras=("entropy",),
        )
        spans: list[Ints] = [np.arange(samples.starts[s], samples.starts[s + 1]) for of in members for s in of]
        where = np.concatenate(spans)
        logprobs[where] = result.logprobs
        entropy[where] = result.extras["entropy"]
    return Rescored(logprobs, entropy, rows)


def normalizer_of(samples: Samples, group: int) -> Normalizer:
    """What the record says its log-probs were normalised by."""
    return "stablemax" if samples.records[group].get("normalizer") == "stablemax" else "softmax"


def filled(samples: Samples, served: Served, tell: Progress) -> tuple[Samples, Finding]:
    """The samples with what the file lacked of the reference's columns, and whether the two agree where both are there."""
    rows = rows_within(samples, MOST_TOKENS)
    if not len(rows):
        return samples, SAME_REFERENCE.needs("prompt_ids and completion_ids")
    tell(f"scoring {int(samples.lengths[rows].sum()):,} tokens again")
    again = rescore(samples, served, rows)
    columns = dict(samples.columns)
    finding = SAME_REFERENCE.needs(f"{REFERENCE} in the file")
    if (said := columns.get(REFERENCE)) is not None:
        finding = _compared(samples, said, again.logprobs)
        columns[REFERENCE] = np.where(np.isfinite(said), said, again.logprobs)
    else:
        columns[REFERENCE] = again.logprobs
    columns["ref_entropy"] = again.entropy
    return replace(samples, columns=columns), finding


def retokenized(samples: Samples, served: Served, tell: Progress) -> Finding:
    """Rule 10."""
    rows = rows_within(samples, MOST_TOKENS)
    if len(rows) > _TEXTS:
        rows = rows[np.linspace(0, len(rows) - 1, _TEXTS).astype(np.int64)]
    if not len(rows):
        return RETOKENIZED.needs("prompt_ids and completion_ids")
    tell("reading text back")
    differ: list[tuple[int, int]] = []
    for s in rows:
        ids = samples.ids[samples.starts[s] : samples.starts[s + 1]]
        back = served.tokenize(served.detokenize(ids), add_special_tokens=False)
        if not np.array_equal(back, ids):
            short = min(len(back), len(ids))
            unequal = np.flatnonzero(back[:short] != ids[:short])
            differ.append((int(s), int(unequal[0]) if len(unequal) else max(short - 1, 0)))
    figures = {"share": len(differ) / len(rows)}
    if differ:
        says = f"{len(differ)} of {len(rows)} completions become other ids when their text is tokenized"
        return RETOKENIZED.fires(says, len(rows), figures, tokens=differ, enough=ENOUGH)
    return RETOKENIZED.passes(len(rows), figures, enough=1)


def _compared(samples: Samples, said: Floats, again: Floats) -> Finding:
    both = np.flatnonzero(np.isfinite(said) & np.isfinite(again))
    if not len(both):
        return SAME_REFERENCE.needs("log-probs that are known on both sides")
    gap = np.abs(said[both] - again[both])
    median = float(np.median(gap))
    fine = all(r.get("ref_dtype") in (None, "float32") for r in samples.records)
    limit = 1e-3 if fine else 0.03
    figures = {"median_gap": median, "largest_gap": float(gap.max()), "threshold": limit}
    if median > limit:
        says = f"the file's reference log-probs are {median:.2g} nats off what this server answers, in the median"
        order = np.argsort(-gap, kind="stable")[:SHOWN]
        return SAME_REFERENCE.fires(says, len(both), figures, tokens=samples.places(both[order]))
    return SAME_REFERENCE.passes(len(both), figures)


def _prompt(samples: Samples, group: int) -> Ints:
    ids = samples.prompts[group]
    if ids is None:
        raise SamplesError("prompt_ids must be there to score again")
    return ids
