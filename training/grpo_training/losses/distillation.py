"""Distillation from a teacher that tells a few log-probs a position: divergences over a support and the mass outside it.

With p the teacher, q the student, S the ids that both are known on, and the mass outside S as one more outcome:

    forward        KL(p || q)                                    covers all that the teacher does
    reverse        KL(q || p)                                    keeps to what the teacher does most
    jsd            beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; at 0 and 1 forward and reverse, as
                   in GKD (Agarwal et al., arXiv 2306.13649)
    skew_forward   KL(p || alpha p + (1 - alpha) q)              bounded; DistiLLM (Ko et al., arXiv 2402.03898)
    skew_reverse   KL(q || (1 - alpha) p + alpha q)

Nothing is clamped: a truncated sum may be negative, and a clamp at 0 would take its gradient away. A masked place takes part
in nothing, whatever stands there.

`sampled_advantages` is the reverse KL of on-policy distillation as a reward a token; k3 with the teacher as reference is
not offered for it, since its gradient is the forward KL's.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from grpo_numerics.head.chosen import ChosenLogprobs
from torch import Tensor

DistillKind = Literal["forward", "reverse", "jsd", "skew_forward", "skew_reverse"]
Tail = Literal["bucket", "none", "renormalise"]


class Support(NamedTuple):
    """What the teacher told of N positions. ids: (N, k) int64, -1 for none, in any order, an id twice counts once. logprobs:
    (N, k) and tail: (N,) of the mass outside the distinct ids, nats."""

    ids: Tensor
    logprobs: Tensor
    tail: Tensor


class DistillTerms(NamedTuple):
    """(N,) each: the divergence in nats; without gradient the mass of teacher and student in the support, and what the bucket
    for the mass outside adds to the divergence (0 without one)."""

    divergence: Tensor
    teacher_mass: Tensor
    student_mass: Tensor
    tail: Tensor


def distillation_terms(
    student: ChosenLogprobs,
    teacher: Support,
    kind: DistillKind = "forward",
    *,
    tail: Tail = "bucket",
    beta: float = 0.5,
    alpha: float = 0.1,
) -> DistillTerms:
    """The divergence of each position.

    student: at `teacher.ids`, with gradient, as `fused_chosen_logprobs` gives it. tail: "bucket" takes the mass outside as an
    outcome of its own, a lower bound of the full divergence that is equal to it at k = V; "none" leaves it out, which is
    no divergence; "renormalise" scales both to the support, and is blind to mass that leaves it. beta: of jsd, in [0, 1].
    alpha: of the skewed ones, in [0, 1). Raises ValueError.
    """
    _check(student, teacher, kind, tail, beta, alpha)
    there = first_places(teacher.ids)
    p, q = teacher.logprobs.to(student.logprobs.dtype), student.logprobs
    masses = [_mass(logprobs.detach(), there) for logprobs in (p, q)]
    if tail == "bucket":
        outside = teacher.tail.to(q.dtype)
        # No token is left outside where a tail is -inf: the term goes to 0 there.
        left = (outside > -math.inf) & (student.tail > -math.inf)
        p, q = torch.cat([p, outside[:, None]], 1), torch.cat([q, student.tail[:, None]], 1)
        there = torch.cat([there, left[:, None]], 1)
    p, q = _masked(p, there), _masked(q, there)
    if tail == "renormalise":
        some = there.any(1, keepdim=True)
        p, q = (torch.where(some, x - x.logsumexp(1, keepdim=True), x) for x in (p, q))
    outcomes = _divergence(p, q, there, kind, beta, alpha)
    bucket = outcomes[:, -1].detach() if tail == "bucket" else torch.zeros_like(masses[0])
    return DistillTerms(outcomes.sum(-1), masses[0], masses[1], bucket)


def sampled_advantages(
    old: Tensor, teacher: Tensor, mask: Tensor, *, coef: float = 1.0, clip: float | None = None
) -> Tensor:
    """(S, C) what each sampled token earns for the teacher's sake: coef (log p - log q_old), 0 outside the mask.

    old: (S, C) the policy's log-probs before the step's first update. teacher: (S, C). clip: the largest size of a difference
    in nats. It goes to the task's advantage token by token: never averaged over the group, never summed into one reward
    a completion. Tinker, "On-policy distillation" (2025).
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be > 0 or None, got {clip}")
    difference = torch.where(mask, teacher.to(old.dtype) - old, 0.0).detach()
    if clip is not None:
        difference = difference.clamp(-clip, clip)
    return coef * difference


def first_places(ids: Tensor) -> Tensor:
    """(N, k) bool: the places that hold an id for the first time in their row."""
    order = ids.argsort(dim=1, stable=True)  # equal ids beside each other, the earliest place first
    ranked = ids.gather(1, order)
    first = torch.ones_like(ranked, dtype=torch.bool)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    return (ids >= 0) & torch.zeros_like(first).scatter(1, order, first)


def _divergence(p: Tensor, q: Tensor, there: Tensor, kind: DistillKind, beta: float, alpha: float) -> Tensor:
    """(N, k) what each outcome adds."""
    if kind == "jsd" and beta in (0.0, 1.0):
        kind = "forward" if beta == 0 else "reverse"
    match kind:
        case "forward":
            return _kl(p, q, there)
        case "reverse":
            return _kl(q, p, there)
        case "jsd":
            mixed = _mixture(p, q, beta)
            return beta * _kl(p, mixed, there) + (1 - beta) * _kl(q, mixed, there)
        case "skew_forward":
            return _kl(p, _mixture(p, q, alpha), there)
        case "skew_reverse":
            return _kl(q, _mixture(p, q, 1 - alpha), there)


def _kl(a: Tensor, b: Tensor, there: Tensor) -> Tensor:
    """(N, k) e^a (a - b); an outcome of probability 0 adds nothing."""
    counts = there & (a > -math.inf)
    safe = torch.where(counts, a, 0.0)
    return torch.where(counts, safe.exp() * (safe - torch.where(counts, b, 0.0)), 0.0)


def _mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """log(share e^p + (1 - share) e^q)."""
    if share == 0:
        return q
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))


def _masked(logprobs: Tensor, there: Tensor) -> Tensor:
    return torch.where(there, logprobs, -1e30)  # finite, so that no derivative of what is left out is NaN


def _mass(logprobs: Tensor, there: Tensor) -> Tensor:
    return torch.where(there, logprobs.exp(), 0.0).sum(-1)


def _check(student: ChosenLogprobs, teacher: Support, kind: DistillKind, tail: Tail, beta: float, alpha: float) -> None:
    if kind not in get_args(DistillKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(DistillKind))}, got {kind!r}")
    if tail not in get_args(Tail):
        raise ValueError(f"tail must be one of {', '.join(get_args(Tail))}, got {tail!r}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha}")
    if not teacher.ids.shape == teacher.logprobs.shape == student.logprobs.shape:
        raise ValueError(
            f"student and teacher must speak of the same (N, k) ids, got log-probs of {tuple(student.logprobs.shape)} and "
            f"{tuple(teacher.logprobs.shape)} for ids of {tuple(teacher.ids.shape)}"
        )
