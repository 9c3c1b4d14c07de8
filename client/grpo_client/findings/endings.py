"""Do completions that ended hold the token that ended them, and can the reference expect it?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from grpo_client.findings.finding import Finding, Rule
from grpo_client.findings.pairs import REFERENCE
from grpo_client.findings.samples import Samples

_COMPLETIONS = 20  # that a verdict wants

END_TOKENS = Rule(
    "end_tokens",
    "completions that ended hold their end token, and the reference expects it",
    "Check: of the completions that ended, and not by a stop string, more than 5 % do not end in an id of `end_ids`; or the "
    "reference's median log-prob of the end ids is below -10.",
    "Keep the end token among the ids that are scored and trained on (no skip_special_tokens on the way): without it the "
    "policy never learns to stop. An end that the reference never expects is another model's.",
    unit="completions",
)


def end_tokens(samples: Samples, end_ids: frozenset[int] = frozenset()) -> Finding:
    """Rule 9. end_ids: those of the tokenizer, for records that do not name theirs."""
    if "ended" not in samples.known or not len(samples.ids) or (samples.ids < 0).all():
        return END_TOKENS.needs("completion_ids and ended")
    own = [frozenset(_ids(record)) or end_ids for record in samples.records]
    if not any(own):
        return END_TOKENS.needs("end_ids in the file, or the server's address")
    last = samples.starts[1:] - 1
    asked = [
        s
        for s in range(len(samples))
        if samples.known["ended"][s] == 1
        and samples.lengths[s]
        and own[samples.group[s]]
        and not _by_stop_string(samples, s)
    ]
    if not asked:
        return END_TOKENS.needs("completions that ended by themselves")
    lost = [s for s in asked if int(samples.ids[last[s]]) not in own[samples.group[s]]]
    figures = {"lost": len(lost) / len(asked)}
    kept = [s for s in asked if int(samples.ids[last[s]]) in own[samples.group[s]]]
    if REFERENCE in samples.columns and kept:
        known = samples.columns[REFERENCE][last[kept]]
        figures["median_ref_logprob"] = (
            float(np.median(known[np.isfinite(known)])) if np.isfinite(known).any() else np.nan
        )
    if figures["lost"] > 0.05:
        says = f"{len(lost)} of {len(asked)} completions that ended hold no end token"
        places = [(s, int(samples.lengths[s]) - 1) for s in lost]
        return END_TOKENS.fires(says, len(asked), figures, tokens=places, enough=_COMPLETIONS)
    if figures.get("median_ref_logprob", 0.0) < -10:
        median = figures["median_ref_logprob"]
        says = f"the reference hardly ever ends there: its median log-prob of the end token is {median:.1f}"
        places = [(s, int(samples.lengths[s]) - 1) for s in kept]
        return END_TOKENS.fires(says, len(asked), figures, tokens=places, enough=_COMPLETIONS)
    return END_TOKENS.passes(len(asked), figures, enough=_COMPLETIONS)


def _ids(record: Mapping[str, Any]) -> list[int]:
    value = record.get("end_ids")
    return [i for i in cast(list[Any], value) if isinstance(i, int)] if isinstance(value, list) else []


def _by_stop_string(samples: Samples, s: int) -> bool:
    stops = cast(list[Any], samples.records[int(samples.group[s])].get("stop") or [])
    text = samples.texts[s]
    return text is not None and any(isinstance(stop, str) and stop and stop in text for stop in stops)
