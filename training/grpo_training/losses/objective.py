"""What a run minimises, put together from its parts as the configuration says, one portion of a step at a time.

    policy term x entropy mask x rollout correction  +  beta KL  -  entropy_coef x entropy

The parts are in `grpo` and `regularizers`; here is which of them are used, on which tokens, and what is told about them.
With `kl_in: reward` the KL is in the advantages already: `penalised` puts it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from grpo_training.config import Correction, LossConfig
from grpo_training.losses.grpo import LossTerms, Totals, kl_term, policy_loss, rollout_correction
from grpo_training.losses.masks import boolean_mask
from grpo_training.losses.regularizers import entropy_bonus, high_entropy_mask, kl_in_reward


@dataclass(frozen=True, slots=True)
class PortionData:
    """One portion, S completions of up to C tokens.

    logprobs: (S, C) of the policy, with gradient. entropies: (S, C) nats, or None where nothing needs them. old: (S, C) of
    the policy before the step's first update. sampler: (S, C) as the engine that sampled told them. reference: (S, C), or
    None. mask: (S, C), bool or 0 and 1: the tokens that are trained on, without those of a completion that is left out.
    advantages: (S,), or (S, C) where each token has its own.
    """

    logprobs: Tensor
    entropies: Tensor | None
    old: Tensor
    sampler: Tensor
    reference: Tensor | None
    mask: Tensor
    advantages: Tensor


def needs_entropies(options: LossConfig) -> bool:
    """Whether the policy's forward has to give entropies too."""
    return options.entropy_coef > 0 or options.top_entropy_quantile < 1


def correction_in_use(options: LossConfig, *, foreign: bool) -> Correction:
    """What `auto` stands for. foreign: whether another engine than the policy sampled."""
    if options.rollout_correction != "auto":
        return options.rollout_correction
    return "sequence_mask" if foreign else "none"


def portion_loss(
    data: PortionData,
    options: LossConfig,
    totals: Totals,
    *,
    correction: Correction,
    everyones: Callable[[Tensor], Tensor] | None = None,
) -> LossTerms:
    """The portion's share of the step's loss, and sums over its tokens for the metrics.

    correction: not `auto`. everyones: (N,) values of this process -> (M,) of all processes, for what is measured over the
    portion of all of them (a collective, where it is needed); None where there is one. Sums beside those of `policy_loss`,
    where the part is in use: `rollout/weight` and `rollout/left_out` (tokens whose weight is 0), `policy/trained_share`,
    `policy/entropy`.
    """
    mask = boolean_mask(data.mask, data.logprobs.shape)
    weights: Tensor | None = None
    sums: dict[str, Tensor] = {}
    if correction != "none":
        level, _, how = correction.partition("_")
        weights = rollout_correction(
            data.old,
            data.sampler,
            mask,
            level=cast(Literal["token", "sequence"], level),
            how=cast(Literal["truncate", "mask"], how),
            cap=options.rollout_correction_cap,
        )
        sums["rollout/weight"] = (weights * mask).sum()
        sums["rollout/left_out"] = ((weights == 0) & mask).sum()
    trained = mask
    if options.top_entropy_quantile < 1:
        assert data.entropies is not None
        entropies = data.entropies.detach()
        everywhere = everyones(entropies[mask]).to(entropies) if everyones else None
        trained = high_entropy_mask(entropies, mask, options.top_entropy_quantile, everywhere=everywhere)
        weights = trained.float() if weights is None else weights * trained
        sums["policy/trained_share"] = trained.sum()
    terms = policy_loss(
        data.logprobs,
        data.advantages,
        mask,
        options,
        totals,
        old_logprobs=data.old,
        ref_logprobs=data.reference,
        weights=weights,
    )
    loss = terms.loss
    if options.entropy_coef > 0:
        assert data.entropies is not None
        tokens = int(everyones(trained.sum()[None]).sum()) if everyones else None
        bonus = entropy_bonus(data.entropies, trained, portions=totals.portions, tokens=tokens)
        loss = loss - options.entropy_coef * bonus
    if data.entropies is not None:
        sums["policy/entropy"] = data.entropies.detach().where(mask, 0.0).sum()
    return replace(terms, loss=loss, sums=terms.sums | sums)


@torch.no_grad()
def penalised(
    rewards: Tensor, policy: Tensor, reference: Tensor, mask: Tensor, options: LossConfig
) -> tuple[Tensor, float]:
    """(S,) rewards less beta times each completion's KL, and the mean KL of a token (0 where there is none).

    policy, reference: (S, C) log-probs of what was sampled. mask: (S, C), bool or 0 and 1.
    """
    mask = boolean_mask(mask, policy.shape)
    shaped = kl_in_reward(rewards, policy, reference, mask, beta=options.beta, kind=options.kl)
    kl = kl_term(policy.where(mask, 0.0), reference.where(mask, 0.0), kind=options.kl).where(mask, 0.0)
    return shaped, float(kl.sum() / mask.sum().clamp(min=1))
