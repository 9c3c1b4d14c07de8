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

Shape letters: S sequences, C completion tokens (padded), G completions a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from grpo_numerics import kl_estimate
from torch import Tensor

from grpo_training.config import KlKind, LossConfig, LossKind

ADVANTAGE_EPS = 1e-4

_CLIPPED: frozenset[LossKind] = frozenset({"grpo", "bnpo", "dr_grpo", "dapo", "luspo"})


@dataclass(frozen=True, slots=True)
class Totals:
    """What the whole step holds, over all portions and processes.

    sequences, tokens: unmasked ones. portions: into how many the step is cut. max_tokens: the length limit of a
    completion (dr_grpo divides by it, whatever the lengths were). portion_tokens: of this portion over all processes,
    for bnpo; None where there is one process.
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


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: Literal["group", "batch", "none"] = "group", eps: float = ADVANTAGE_EPS
) -> Tensor:
    """(S,) reward minus its group's mean, over the standard deviation (unbiased) of group or batch, plus eps.

    A group of equal rewards has no advantage: 0. scale="none" is Dr. GRPO's.
    """
    grouped = rewards.float().view(-1, group_size)
    centred = grouped - grouped.mean(-1, keepdim=True)
    if scale == "none":
        return centred.flatten()
    if scale == "batch":
        deviation = rewards.float().std() if rewards.numel() > 1 else rewards.new_zeros(())
    else:
        deviation = grouped.std(-1, keepdim=True) if group_size > 1 else torch.zeros_like(grouped)
    return (centred / (deviation + eps)).flatten()


def importance_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, level: Literal["token", "sequence"] = "token"
) -> Tensor:
    """r = exp(logp - old), (S, C); at sequence level exp of its mean over the sequence, (S, 1) (GSPO)."""
    log_ratio = logprobs - old_logprobs
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1)).unsqueeze(-1)
    return log_ratio.exp()


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
    difference = ((logprobs.detach() - sampler_logprobs) * mask).nan_to_num(nan=0.0)
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
    """The portion's share of the step's loss.

    logprobs: (S, C), with gradient. advantages: (S,). mask: (S, C) bool. old_logprobs: (S, C) of the policy that
    sampled, None meaning this very policy. ref_logprobs: (S, C), needed when options.beta > 0 and the KL is in the loss.
    weights: (S, C) or (S, 1) from `rollout_correction`. What the mask hides may be anything, NaN included: it reaches
    neither the loss nor its gradient.
    """
    with_kl = options.beta > 0 and options.kl_in == "loss"
    if with_kl and ref_logprobs is None:
        raise ValueError("beta > 0 needs ref_logprobs")
    # Hidden places get one and the same finite value on every side, before any exp could make a NaN of them.
    logp = logprobs.where(mask, 0.0)
    old = logp.detach() if old_logprobs is None else old_logprobs.where(mask, 0.0)
    ratio = importance_ratio(logp, old, mask, level=options.ratio)
    advantage = advantages.unsqueeze(-1)

    per_token = _policy_term(logp, ratio, advantage, options)
    if weights is not None:
        per_token = per_token * weights
    sums: dict[str, Tensor] = {}
    if with_kl:
        assert ref_logprobs is not None
        kl = kl_term(logp, ref_logprobs.where(mask, 0.0), kind=options.kl)
        if options.bias_corrected_kl:
            kl = kl * ratio
        per_token = per_token + options.beta * kl
        sums["kl"] = (kl.detach() * mask).sum()
    low, high = _clipped(ratio.detach(), advantage, options)
    sums["clip_low"] = (low * mask).sum()
    sums["clip_high"] = (high * mask).sum()
    sums["ratio"] = (ratio.detach() * mask).sum()
    return LossTerms(_reduce(per_token, mask, options.kind, totals), sums, mask.sum())


def kl_term(logprobs: Tensor, ref_logprobs: Tensor, *, kind: KlKind = "k3") -> Tensor:
    """(S, C) estimate of KL(policy || reference) at each sampled token: see grpo_numerics.kl."""
    return kl_estimate(kind, logprobs, ref_logprobs)


def mean_metrics(
    portions: Iterable[LossTerms], *, summed: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Token means over all portions of a step, and the step's loss. summed: adds a (N,) fp64 vector up over processes."""
    portions = list(portions)
    names = list(portions[0].sums)
    figures = [sum(float(p.tokens) for p in portions), sum(float(p.loss.detach()) for p in portions)]
    figures += [sum(float(p.sums[name]) for p in portions) for name in names]
    totals = torch.tensor(figures, dtype=torch.float64)
    tokens, loss, *sums = (totals if summed is None else summed(totals)).tolist()
    return {"loss": loss, **{name: value / max(tokens, 1.0) for name, value in zip(names, sums, strict=True)}}


def _policy_term(logp: Tensor, ratio: Tensor, advantage: Tensor, options: LossConfig) -> Tensor:
    """(S, C), or (S, 1) where the ratio is the sequence's."""
    if options.kind == "cispo":
        return -ratio.clamp(max=options.epsilon_high).detach() * advantage * logp
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


def _reduce(per_token: Tensor, mask: Tensor, kind: LossKind, totals: Totals) -> Tensor:
    """Average (S, C) or (S, 1) terms; an empty completion adds 0, not 0/0.

    grpo, sapo  mean over sequences of the mean over their tokens
    luspo       mean over sequences of the sum over their tokens (a sequence-level ratio counts its length once a token)
    bnpo        mean over the tokens of the portion, of all processes; portions count alike
    dr_grpo     sum over tokens / (sequences * length limit)
    dapo, cispo mean over the tokens of the whole step
    """
    masked = per_token * mask
    if kind in ("grpo", "sapo"):
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / totals.sequences
    if kind == "luspo":
        return masked.sum() / totals.sequences
    if kind == "bnpo":
        tokens = (
            mask.sum() if totals.portion_tokens is None else mask.new_tensor(totals.portion_tokens, dtype=torch.int64)
        )
        return masked.sum() / tokens.clamp(min=1) / totals.portions
    if kind == "dr_grpo":
        return masked.sum() / (totals.sequences * totals.max_tokens)
    return masked.sum() / max(totals.tokens, 1)
