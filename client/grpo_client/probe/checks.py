"""What the probe checks, each by itself: a check that cannot be asked fails alone, with the endpoint's own words.

Errors are absolute, in nats, against the oracle at the same temperature. Answers that should be the same answer (alone or
in a batch, in another order, a second time) are compared with each other: equal to the bit, or different by so much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from grpo_client.probe import cases as built_in
from grpo_client.probe.cases import Case
from grpo_client.probe.dialects import Scores
from grpo_client.probe.endpoint import Endpoint, EndpointFailed
from grpo_client.probe.oracle import Oracle

# All three are exact in fp32, which is how temperatures travel.
TEMPERATURES = (0.5, 2.0)
# Logits divided by this overflow fp32: there is a right answer in fp64, and none that fp32 can hold.
OVERFLOWING = 1e-38


class Outcome(StrEnum):
    PASS = "pass"
    DIFFERS = "differs"  # within the tolerance, but not the same bits
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """largest: error or difference in nats, where there is one. note: what was seen, for people."""

    check: str
    verdict: Outcome
    largest: float | None = None
    mean: float | None = None
    note: str = ""


class _Probe:
    """What every check is given. The oracle is asked once for each question: it is slow, and its answer does not change."""

    def __init__(self, endpoint: Endpoint, oracle: Oracle, tolerance: float, long: int) -> None:
        self.endpoint = endpoint
        self.facts = oracle.facts
        self.tolerance = tolerance
        self.long = long
        self._oracle = oracle
        self._known: dict[tuple[Case, float], Scores] = {}

    def truth(self, cases: Sequence[Case], temperature: float = 1.0) -> list[Scores]:
        """The oracle's scores of each case."""
        missing = [c for c in dict.fromkeys(cases) if (c, temperature) not in self._known]
        if missing:
            for case, scores in zip(missing, self._oracle.score(missing, temperature), strict=True):
                self._known[case, temperature] = scores
        return [self._known[c, temperature] for c in cases]

    def right(self, name: str, cases: Sequence[Case], temperature: float = 1.0, note: str = "") -> CheckResult:
        """Compare with the oracle."""
        if not cases:
            return CheckResult(name, Outcome.SKIP, note="the model has no such token")
        truth = np.concatenate(self.truth(cases, temperature))
        got = np.concatenate(self.endpoint.score(cases, temperature))
        error = np.abs(got - truth)
        if not np.isfinite(got).all():
            return CheckResult(
                name, Outcome.FAIL, note=f"{(~np.isfinite(got)).sum()} of {len(got)} scores are not finite"
            )
        largest = float(error.max(initial=0.0))
        verdict = Outcome.PASS if largest <= self.tolerance else Outcome.FAIL
        return CheckResult(name, verdict, largest, float(error.mean()) if len(error) else 0.0, note)

    def same(self, name: str, one: Sequence[Scores], other: Sequence[Scores]) -> CheckResult:
        """Compare two answers to the same question."""
        a, b = np.concatenate(one), np.concatenate(other)
        if np.array_equal(a, b, equal_nan=True):
            return CheckResult(name, Outcome.PASS, 0.0, 0.0, "equal to the bit")
        difference = np.abs(a - b)
        largest = float(difference.max())
        verdict = Outcome.DIFFERS if largest <= self.tolerance else Outcome.FAIL
        return CheckResult(
            name, verdict, largest, float(difference.mean()), f"{(a != b).sum()} of {len(a)} scores changed"
        )


def run_checks(endpoint: Endpoint, oracle: Oracle, *, tolerance: float, long: int) -> Iterator[CheckResult]:
    """Every check's result, in order. tolerance: nats. long: tokens of the long input."""
    probe = _Probe(endpoint, oracle, tolerance, long)
    for name, check in CHECKS.items():
        try:
            yield check(probe, name)
        except EndpointFailed as failure:
            yield CheckResult(name, Outcome.FAIL, note=str(failure))


def _accuracy(probe: _Probe, name: str) -> CheckResult:
    return probe.right(name, built_in.ordinary(probe.facts))


def _temperature(at: float) -> Callable[[_Probe, str], CheckResult]:
    def check(probe: _Probe, name: str) -> CheckResult:
        cases = built_in.ordinary(probe.facts)
        result = probe.right(name, cases, at)
        if result.verdict is Outcome.FAIL:
            at_one = np.concatenate(probe.truth(cases, 1.0))
            got = np.concatenate(probe.endpoint.score(cases, at))
            if np.abs(got - at_one).max() <= probe.tolerance:
                ignored = "temperature is ignored: the answer is that of temperature 1"
                return CheckResult(name, Outcome.FAIL, result.largest, result.mean, ignored)
        return result

    return check


def _batch(probe: _Probe, name: str) -> CheckResult:
    cases = built_in.ordinary(probe.facts)
    together = probe.endpoint.score(cases)
    alone = [probe.endpoint.score([case])[0] for case in cases]
    return probe.same(name, together, alone)


def _order(probe: _Probe, name: str) -> CheckResult:
    cases = built_in.ordinary(probe.facts)
    backwards = probe.endpoint.score(cases[::-1])[::-1]
    return probe.same(name, probe.endpoint.score(cases), backwards)


def _warm(probe: _Probe, name: str) -> CheckResult:
    """A sequence never asked before, then prefixes of it as a prefix cache would meet them, then itself again."""
    case = built_in.fresh(probe.facts)
    cold = probe.endpoint.score([case])
    for end in range(2, len(case.ids), 16):
        probe.endpoint.score([Case(case.ids[:end], 1)])
    return probe.same(name, cold, probe.endpoint.score([case]))


def _eos(probe: _Probe, name: str) -> CheckResult:
    return probe.right(name, built_in.with_eos(probe.facts))


def _empty(probe: _Probe, name: str) -> CheckResult:
    case = built_in.alone(probe.facts)
    among = [*built_in.ordinary(probe.facts), case]
    probe.endpoint.score([case])  # raises unless it is answered with no scores
    return probe.right(name, among, note="no scores, and the others keep theirs")


def _first_token(probe: _Probe, name: str) -> CheckResult:
    cases = [Case(c.ids[:2], 1) for c in built_in.from_the_start(built_in.ordinary(probe.facts))]
    return probe.right(name, cases, note="one token of context")


def _long(probe: _Probe, name: str) -> CheckResult:
    case = built_in.long_one(probe.facts, probe.long)
    return probe.right(name, [case], note=f"{len(case.ids)} tokens")


def _nonfinite(probe: _Probe, name: str) -> CheckResult:
    """A temperature at which fp32 overflows: refused, said to be not finite, or right. Not made up, and no broken JSON."""
    cases = built_in.ordinary(probe.facts)
    try:
        got = np.concatenate(probe.endpoint.score(cases, OVERFLOWING))
    except EndpointFailed as failure:
        if failure.status is not None and 400 <= failure.status < 500:
            return CheckResult(name, Outcome.PASS, note="refused")
        raise
    truth = np.concatenate(probe.truth(cases, OVERFLOWING))
    # Where the endpoint gives a number, it must be the true one; the true one of a token that is not the best is -inf.
    with np.errstate(invalid="ignore"):
        close = np.abs(got - truth) <= 1e-3 * np.abs(truth) + probe.tolerance
    made_up = np.isfinite(got) & ~(np.isfinite(truth) & close)
    if made_up.any():
        where = int(np.flatnonzero(made_up)[0])
        note = f"at temperature {OVERFLOWING:g} {made_up.sum()} scores are made up, the first {got[where]:g}"
        return CheckResult(name, Outcome.FAIL, note=note)
    return CheckResult(name, Outcome.PASS, note=f"{(~np.isfinite(got)).sum()} of {len(got)} said to be not finite")


def _k3_floor(probe: _Probe, name: str) -> CheckResult:
    """The KL estimate k3 = e^(r-t) - (r-t) - 1 of the endpoint against the same model elsewhere: it should be nothing.

    It is about half the squared error: what a training run would see as KL although the policy is the reference.
    """
    cases = built_in.ordinary(probe.facts)
    delta = np.concatenate(probe.endpoint.score(cases)) - np.concatenate(probe.truth(cases))
    with np.errstate(over="ignore"):
        k3 = np.expm1(delta) - delta
    floor = float(k3.mean())
    verdict = Outcome.PASS if floor <= probe.tolerance**2 else Outcome.FAIL
    return CheckResult(name, verdict, float(k3.max()), floor, "of k3, not of the score")


def _unknown_id(probe: _Probe, name: str) -> CheckResult:
    beyond = probe.facts.vocab_size
    try:
        probe.endpoint.score([Case((1, beyond, 1), 1)])
    except EndpointFailed as failure:
        if failure.status is not None and 400 <= failure.status < 500:
            return CheckResult(name, Outcome.PASS, note=f"refused with {failure.status}")
        raise
    return CheckResult(name, Outcome.FAIL, note=f"the id {beyond} was scored; the vocabulary ends before it")


CHECKS: dict[str, Callable[[_Probe, str], CheckResult]] = {
    "accuracy": _accuracy,
    **{f"temperature {t:g}": _temperature(t) for t in TEMPERATURES},
    "alone or in a batch": _batch,
    "order of the batch": _order,
    "warm prefix cache": _warm,
    "EOS is a token": _eos,
    "empty completion": _empty,
    "first token": _first_token,
    "long input": _long,
    "not finite": _nonfinite,
    "k3 noise floor": _k3_floor,
    "id beyond the vocabulary": _unknown_id,
}
