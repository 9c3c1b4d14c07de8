"""How requests and results look in a notebook and a log: one short line, whatever they hold."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from grpo_client.protocol import CompletionScores, Group, ScoreRequest, ScoreResult
    from grpo_client.text import TextGroup, TextScoreRequest

_FIGURES = 6  # of a completion that are shown


def result(of: ScoreResult) -> str:
    """ScoreResult(4 completions in 2 groups, 6 tokens, mean log-prob -1.234, all ok, temperature 0.7, ...)"""
    finite = of.logprobs[np.isfinite(of.logprobs)]
    parts = [
        f"{_count(len(of), 'completion')} in {_count(len(of.group_sizes), 'group')}",
        _count(len(of.logprobs), "token"),
        *([f"{int(of.completion_mask.sum()):,} asked"] if of.completion_mask is not None else ()),
    ]
    parts += [f"mean log-prob {finite.mean(dtype=np.float64):.4g}"] if len(finite) else []
    parts += [_statuses(of.status.tolist()), f"temperature {_range(of.temperature.tolist())}"]
    parts += [f"normalizer {of.normalizer}"] if of.normalizer != "softmax" else []
    parts += [f"extras {', '.join(of.extras)}"] if of.extras else []
    return f"ScoreResult({', '.join(parts)}, reference {of.reference.model!r:.60} {of.reference.fingerprint[:12]})"


def completion(of: CompletionScores) -> str:
    """CompletionScores(2 tokens, ok, logprobs [-0.12, -1.1], extras entropy)"""
    figures = ", ".join(f"{value:.4g}" for value in of.logprobs[:_FIGURES].tolist())
    more = ", ..." if len(of.logprobs) > _FIGURES else ""
    extras = f", extras {', '.join(of.extras)}" if of.extras else ""
    tokens = _count(len(of.logprobs), "token")
    return f"CompletionScores({tokens}, {of.status.name.lower()}, logprobs [{figures}{more}]{extras})"


def group(of: Group) -> str:
    """Group(prompt of 3 tokens, 2 completions of 1 to 4 tokens, temperature 0.7)"""
    lengths = [len(ids) for ids in of.completions]
    wanted = ", token_ids" if of.token_ids is not None else ""
    wanted += ", completion_mask" if of.completion_mask is not None else ""
    completions = f"{_count(len(lengths), 'completion')} of {_range(lengths, ' to ')} tokens"
    return f"Group(prompt of {_count(len(of.prompt), 'token')}, {completions}, temperature {of.temperature:g}{wanted})"


def text_group(of: TextGroup) -> str:
    """TextGroup('2 + 2 =', completions (' 4', ' 5'), temperature 0.7)"""
    completions = reprlib.repr(of.completions)
    return f"TextGroup({reprlib.repr(of.prompt)}, completions {completions}, temperature {of.temperature:g})"


def request(of: ScoreRequest | TextScoreRequest) -> str:
    """ScoreRequest(2 groups, 4 completions, temperature 0.7, extras entropy)"""
    parts = [_count(len(of.groups), "group"), _count(sum(len(g.completions) for g in of.groups), "completion")]
    parts += [f"temperature {_range([g.temperature for g in of.groups])}"] if of.groups else []
    parts += [f"normalizer {of.normalizer}"] if of.normalizer != "softmax" else []
    parts += [f"extras {', '.join(sorted(of.extras))}"] if of.extras else []
    parts += [f"top_k {of.top_k}"] if of.top_k else []
    parts += [f"fingerprint {of.fingerprint[:12]}"] if of.fingerprint else []
    return f"{type(of).__name__}({', '.join(parts)})"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def _range(values: Sequence[Any], between: str = "-") -> str:
    low, high = min(values, default=0), max(values, default=0)
    return f"{low:g}" if low == high else f"{low:g}{between}{high:g}"


def _statuses(codes: Iterable[int]) -> str:
    from grpo_client.protocol import Status

    named = {int(status): status.name.lower() for status in Status}
    counted = Counter(named.get(code, f"status {code}") for code in codes)
    if len(counted) == 1:
        return f"all {next(iter(counted))}"
    return " and ".join(f"{number} {name}" for name, number in counted.items()) or "none"
