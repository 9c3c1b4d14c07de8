"""GRPO's objective as functions: tensors in, loss and metrics out. Names and results are those of TRL's GRPOTrainer 1.16.

    advantages = group_advantages(rewards, group_size)                      (S,)
    terms = policy_loss(logprobs, advantages, mask, options, totals, ...)   loss, and per-token sums for the metrics

With r = exp(logp - old) and advantage A the term of a token is
    grpo, bnpo, dr_grpo, dapo, luspo   -min(min(r, delta) A, clip(r, 1 - eps_low, 1 + eps_high) A)
    cispo                              -stopgrad(min(r, eps_high)) A logp
    sapo                               -(4 / tau) sigmoid(tau (r - 1)) A
plus beta times the KL estimate. They differ in how tokens are averaged, see `_reduce`.

A step may be cut into portions (gradient accumulation): `Totals` tells each portion what the whole step holds, so that
the sum of the portions' losses is the loss of the uncut step. Nothing here knows models, servers or optimizers.

The policy term is computed in float64: a ratio is exponential in log-probs, and what clips it must see a number first.

Shape letters: S sequences, C completion tokens (padded), G completions a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from grpo_numerics import kl_estimate
from grpo_numerics.transforms import upcast, widened
from torch import Tensor

from grpo_training.config import KlKind, LossConfig, LossKind
from grpo_training.losses.advantages import ADVANTAGE_EPS as ADVANTAGE_EPS
from grpo_training.losses.advantages import group_advantages as group_advantages
from grpo_training.losses.masks import boolean_mask, per_token

_LARGEST = 354.0  # nats: e to it is about the root of fp64's largest number, so that products of two stay finite
_FAR = 1e6  # nats: e to it is infinite, e to minus it is 0, in every dtype
_CLIPPED: frozenset[LossKind] = frozenset({"grpo", "bnpo", "dr_grpo", "dapo", "luspo"})


@dataclass(frozen=True, slots=True)
class Totals:
    """What the whole step holds, over all portions and processes: what contributes to the loss, and nothing else.

    sequences: completions that are trained on, empty ones included; one that is left out (no score, no reward) is not
    counted. tokens: unmasked ones. portions: those that have any. max_tokens: the length limit of a completion (dr_grpo
    divides by it, whatever the lengths were). portion_tokens: of this portion over all processes, for bnpo; None where
    there is one process.
    """

    sequences: int
    tokens: int
    portions: int
    max_tokens: int
    portion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class LossTerms:
    """loss: scalar with gradient, the portion's share of the step's loss. sums: over the portion's tokens, detached."""

    loss: Tensor
    sums: dict[str, Tensor]
    tokens: Tensor


def importance_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, level: Literal["token", "sequence"] = "token"
) -> Tensor:
    """r = exp(logp - old), (S, C), 1 where masked; at sequence level exp of its mean over the sequence, (S, 1) (GSPO).

    fp32 or better, as the log-probs are. A ratio beyond the dtype's range, or e^354, is held there, a constant to the
    gradient: finite, so that whatever clips it can, and a weight of 0 can.
    """
    mask = boolean_mask(mask, logprobs.shape)
    log_ratio = (upcast(logprobs) - upcast(old_logprobs)).where(mask, 0.0)
    if level == "sequence":
        log_ratio = (log_ratio.sum(-1) / mask.sum(-1).clamp(min=1)).unsqueeze(-1)
    range_end = math.log(torch.finfo(log_ratio.dtype).max) - 1e-3
    return log_ratio.clamp(max=min(_LARGEST, range_end)).exp()


def rollout_correction(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    level: Literal["token", "sequence"] = "sequence",
    how: Literal["truncate", "mask"] = "mask",
    cap: float = 3.0,
) -> Tensor:
    """Weight of each token when another engine sampled: pi_old / pi_sampler, (S, C) or (S, 1), without gradient.

    A ratio above `cap` is cut down to it (truncate) or the token or sequence is left out (mask). A sampler's NaN, "I do
    not know", counts as a ratio of 1.
    """
    mask = boolean_mask(mask, logprobs.shape)
    difference = (upcast(logprobs.detach()) - upcast(sampler_logprobs)).where(mask, 0.0)
    difference = difference.nan_to_num(nan=0.0).clamp(
        -_FAR, _FAR
    )  # an infinite one must not meet its opposite in a sum
    if level == "sequence":
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    return ratio.clamp(max=cap) if how == "truncate" else ratio.masked_fill(ratio > cap, 0.0)


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    options: LossConfig,
    totals: Totals,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    weights: Tensor | None = None,
) -> LossTerms:
    """The portion's share of the step's loss, fp32, or fp64 for fp64 log-probs.

    logprobs: (S, C), with gradient. advantages: (S,), or (S, C). mask: (S, C), bool or 0 and 1. old_logprobs: (S, C) of the
    policy that sampled, None meaning this very policy. ref_logprobs: (S, C), needed when options.beta > 0 and the KL is in
    the loss. weights: (S, C) or (S, 1) from `rollout_correction`. What the mask hides may be anything in any of them, NaN
    included: it reaches neither the loss nor its gradient. Where the clip binds the gradient is 0, however large the ratio;
    where it does not, a gradient too large for the log-probs' dtype is that dtype's largest number. Raises ValueError for
    shapes that do not fit and for a mask of other numbers.
    """
    with_kl = options.beta > 0 and options.kl_in == "loss"
    if with_kl and ref_logprobs is None:
        raise ValueError("beta > 0 needs ref_logprobs")
    mask = boolean_mask(mask, logprobs.shape)
    # Hidden places get one and the same finite value on every side, before any exp could make a NaN of them.
    logp = widened(logprobs, upcast(logprobs).dtype).where(mask, 0.0)
    fine = widened(logp, torch.float64)
    old = fine.detach() if old_logprobs is None else per_token(old_logprobs, mask, name="old_logprobs").double()
    ratio = importance_ratio(fine, old, mask, level=options.ratio)
    advantage = per_token(advantages, mask, name="advantages").double()

    terms = _policy_term(fine, ratio, advantage, options)
    if weights is not None:
        terms = terms * per_token(weights, mask, name="weights")
    sums: dict[str, Tensor] = {}
    if with_kl:
        assert ref_logprobs is not None
        mine = fine if options.bias_corrected_kl else logp
        kl = kl_term(mine, per_token(ref_logprobs, mask, name="ref_logprobs").to(mine.dtype), kind=options.kl)
        if options.bias_corrected_kl:
            kl = kl.where(ratio > 0, 0.0) * ratio  # what is infinitely far away is so rare that it does not count
        terms = terms + options.beta * kl
        sums["kl"] = kl.detach().double().where(mask, 0.0).sum()
    low, high = _clipped(ratio.detach(), advantage, options)
    sums["clip_low"] = (low & mask).sum()
    sums["clip_high"] = (high & mask).sum()
    sums["ratio"] = ratio.detach().expand(mask.shape).where(mask, 0.0).sum()
    return LossTerms(_reduce(terms, mask, options.kind, totals).to(logp.dtype), sums, mask.sum())


def kl_term(logprobs: Tensor, ref_logprobs: Tensor, *, kind: KlKind = "k3") -> Tensor:
    """(S, C) estimate of KL(policy || reference) at each sampled token: see grpo_numerics.kl."""
    return kl_estimate(kind, logprobs, ref_logprobs)


def mean_metrics(
    portions: Iterable[LossTerms], *, summed: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Token means over all portions of a step, and the step's loss. summed: adds a (N,) fp64 vector up over processes.

    Where no token contributed there is no mean: only `loss` is told.
    """
    portions = list(portions)
    names = list(portions[0].sums)
    figures = [sum(float(p.tokens) for p in portions), sum(float(p.loss.detach()) for p in portions)]
    figures += [sum(float(p.sums[name]) for p in portions) for name in names]
    totals = torch.tensor(figures, dtype=torch.float64)
    tokens, loss, *sums = (totals if summed is None else summed(totals)).tolist()
    if not tokens:
        return {"loss": loss}
    return {"loss": loss, **{name: value / tokens for name, value in zip(names, sums, strict=True)}}


def _policy_term(logp: Tensor, ratio: Tensor, advantage: Tensor, options: LossConfig) -> Tensor:
    """(S, C). ratio: (S, C), or (S, 1) where it is the sequence's."""
    if options.kind == "cispo":
        weight = ratio.clamp(max=options.epsilon_high).detach() * advantage
        return -weight * logp.where(weight != 0, 0.0)  # 0 times a log-prob of -inf
    if options.kind == "sapo":
        soft, hard = (ratio.new_tensor(t) for t in (options.sapo_temperature_pos, options.sapo_temperature_neg))
        tau = torch.where(advantage > 0, soft, hard)
        return -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantage
    clipped = ratio.clamp(1 - options.epsilon_low, 1 + options.epsilon_high)
    if options.delta is not None:
        ratio = ratio.clamp(max=options.delta)
    return -torch.min(ratio * advantage, clipped * advantage)


def _clipped(ratio: Tensor, advantage: Tensor, options: LossConfig) -> tuple[Tensor, Tensor]:
    """Where clipping holds the policy back, from below and from above; broadcast against the mask."""
    if options.kind in _CLIPPED:
        low = (ratio < 1 - options.epsilon_low) & (advantage < 0)
        return low, (ratio > 1 + options.epsilon_high) & (advantage > 0)
    never = torch.zeros_like(ratio, dtype=torch.bool)
    return never, (ratio > options.epsilon_high) & (advantage > 0) if options.kind == "cispo" else never


def _reduce(terms: Tensor, mask: Tensor, kind: LossKind, totals: Totals) -> Tensor:
    """Average (S, C) terms; an empty completion adds 0, not 0/0.

    grpo, sapo  mean over sequences of the mean over their tokens
    luspo       mean over sequences of the sum over their tokens (a sequence-level ratio counts its length once a token)
    bnpo        mean over the tokens of the portion, of all processes; portions count alike
    dr_grpo     sum over tokens / (sequences * length limit)
    dapo, cispo mean over the tokens of the whole step
    """
    masked = terms.where(mask, 0.0)
    sequences = max(totals.sequences, 1)
    if kind in ("grpo", "sapo"):
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / sequences
    if kind == "luspo":
        return masked.sum() / sequences
    if kind == "bnpo":
        tokens = (
            mask.sum() if totals.portion_tokens is None else mask.new_tensor(totals.portion_tokens, dtype=torch.int64)
        )
        return masked.sum() / tokens.clamp(min=1) / max(totals.portions, 1)
    if kind == "dr_grpo":
        return masked.sum() / (sequences * totals.max_tokens)
    return masked.sum() / max(totals.tokens, 1)
