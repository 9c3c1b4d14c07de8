"""Where the KL is: spread over the tokens, or in a handful of them?"""

from __future__ import annotations

import numpy as np

from grpo_client.findings.finding import SHOWN, Finding, Rule
from grpo_client.findings.pairs import POLICY, REFERENCE, lacking, pairs
from grpo_client.findings.samples import Samples
from grpo_client.findings.statistics import k3

_HANDFUL = 5
_NOISE = 1e-4  # nats a token: a smaller KL is the noise of the arithmetic, and its largest tokens mean nothing

FEW_TOKENS = Rule(
    "few_tokens",
    "no handful of tokens makes up the KL",
    "k3 = exp(r - t) - (r - t) - 1. Check: the five largest are more than half of the sum, with a mean over 1e-4 nats.",
    "Look at those tokens in their context: end tokens, a format that the reference never writes, a broken character. A KL of "
    "a few tokens calls for another prompt or a clip, not for another beta.",
)


def few_tokens(samples: Samples) -> Finding:
    """Rule 11, of the tokens."""
    at = pairs(samples)
    if at is None or not len(at):
        return FEW_TOKENS.needs(lacking(samples, POLICY, REFERENCE))
    values = k3(at.d)
    order = np.argsort(-values, kind="stable")
    total = float(values.sum())
    share = float(values[order[:_HANDFUL]].sum()) / total if total > 0 else 0.0
    figures = {"share": share, "mean_k3": total / len(values)}
    if share > 0.5 and total / len(values) > _NOISE:
        says = f"{_HANDFUL} of {len(values):,} tokens carry {share:.0%} of all k3 (mean {total / len(values):.3g} nats)"
        return FEW_TOKENS.fires(says, len(values), figures, tokens=samples.places(at.token[order[:SHOWN]]))
    return FEW_TOKENS.passes(len(values), figures)
