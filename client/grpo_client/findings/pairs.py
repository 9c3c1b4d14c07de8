"""The tokens of which both the policy's and the reference's log-prob are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grpo_client.findings.samples import Floats, Ints, Samples

POLICY, REFERENCE = "policy_logprobs", "ref_logprobs"


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """t, r: (M,) log-probs in nats, finite. token: (M,) where in the file, sequence: (M,) of which completion."""

    t: Floats
    r: Floats
    token: Ints
    sequence: Ints

    @property
    def d(self) -> Floats:
        """(M,) r - t."""
        return self.r - self.t

    def __len__(self) -> int:
        return len(self.t)


def pairs(samples: Samples, t: str = POLICY, r: str = REFERENCE, *, step: int | None = None) -> Pairs | None:
    """Where both are known; None when the file lacks a column. step: of that step alone."""
    if t not in samples.columns or r not in samples.columns:
        return None
    a, b = samples.columns[t], samples.columns[r]
    known = np.isfinite(a) & np.isfinite(b)
    if step is not None:
        known &= samples.token_step() == step
    token = np.flatnonzero(known)
    return Pairs(a[token], b[token], token, samples.sequence[token])


def at_start(samples: Samples, r: str = REFERENCE) -> Pairs | None:
    """The pairs of step 0, where the policy still is the reference."""
    return pairs(samples, r=r, step=0)


def lacking(samples: Samples, *names: str) -> str:
    """Which of the columns the file does not hold, for a sentence."""
    return " and ".join(name for name in names if name not in samples.columns) or "step 0"
