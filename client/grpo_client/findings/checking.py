"""Every rule over one file, in the order in which a person should hear of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grpo_client.findings.endings import end_tokens
from grpo_client.findings.explain import EXPLAIN, explain
from grpo_client.findings.finding import Finding, Verdict
from grpo_client.findings.kl import few_tokens
from grpo_client.findings.metrics import Records, check_metrics
from grpo_client.findings.policy import divided_by_temperature, not_the_sampler, rounded, sharpness, shifted
from grpo_client.findings.prompts import noise_floor, template
from grpo_client.findings.rescoring import (
    RETOKENIZED,
    SAME_REFERENCE,
    Progress,
    Served,
    filled,
    retokenized,
)
from grpo_client.findings.rewards import few_distinct, reward_follows_length, rewarded_phrases
from grpo_client.findings.samples import Samples

_ORDER: Final = (Verdict.CHECK, Verdict.LOOK, Verdict.PASSED, Verdict.NEEDS_DATA)


def check_samples(samples: Samples) -> list[Finding]:
    """Every rule that the file alone can answer."""
    rules = (
        not_the_sampler,
        template,
        noise_floor,
        sharpness,
        divided_by_temperature,
        rounded,
        shifted,
        end_tokens,
        few_tokens,
        reward_follows_length,
        rewarded_phrases,
        few_distinct,
    )
    return [rule(samples) for rule in rules]


def check(
    samples: Samples,
    *,
    served: Served | None = None,
    metrics: Records | None = None,
    tell: Progress = lambda what: None,
) -> list[Finding]:
    """Every finding about a file, what is wrong first.

    served: a client of the reference, to score again what the file lacks and to test what explains a gap. metrics: the
    run's figures, a record a step. tell: is told what is under way. Raises the client's errors.
    """
    return in_order(_found(samples, served, metrics, tell))


def in_order(findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    """What is wrong first, then what to look at, what passed, and what could not be asked."""
    return sorted(findings, key=lambda f: _ORDER.index(f.verdict))


def _found(samples: Samples, served: Served | None, metrics: Records | None, tell: Progress) -> Iterator[Finding]:
    address = "the server's address (--url)"
    if served is None:
        yield from check_samples(samples)
        yield from (rule.needs(address) for rule in (EXPLAIN, SAME_REFERENCE, RETOKENIZED))
    else:
        samples, same = filled(samples, served, tell)
        yield from check_samples(samples)
        yield same
        yield explain(samples, served, tell)
        yield retokenized(samples, served, tell)
    yield from check_metrics(metrics or ())
