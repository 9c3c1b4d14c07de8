"""The teacher's part in an update: what is computed of the policy for it, and how it enters a portion's loss.

The teacher is waited for when the policy's body is through and its head is about to need the ids; or, where the sampled tokens
are all that is asked about, when the whole forward is.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from grpo_numerics.head.chosen import ChosenLogprobs
from torch import Tensor

from grpo_training.config import DistillConfig
from grpo_training.losses.distillation import Support, sampled_advantages
from grpo_training.losses.grpo import LossTerms, Totals
from grpo_training.losses.objective import needs_entropies
from grpo_training.losses.teaching import difference_sums, divergence_loss
from grpo_training.run.parts import Clock, Parts
from grpo_training.run.portion import Portion


def forward(parts: Parts, portion: Portion, clock: Clock) -> tuple[Tensor, Tensor | None, ChosenLogprobs | None]:
    """The policy's (S, C) log-probs, its entropies where they are needed, and its log-probs of the teacher's ids."""
    config, rollout = parts.config, portion.rollout
    entropies = needs_entropies(config.loss) or rollout.entropy is None
    options = config.distillation
    if options is None or options.kind == "sampled":
        return *parts.policy.scores(rollout, entropies=entropies), None

    def ids() -> Tensor:
        learn(portion, clock)
        assert portion.teacher is not None
        assert portion.teacher.tokens is not None
        return portion.teacher.tokens.ids

    temperature = options.temperature or config.rollout.temperature
    return parts.policy.scores_at(rollout, ids, temperature=temperature, entropies=entropies)


def learn(portion: Portion, clock: Clock) -> None:
    """Wait for the teacher, where there is one."""
    if portion.taught and portion.teacher is None:
        with clock("teacher_wait"):
            portion.learn()


def earned(portion: Portion, options: DistillConfig | None) -> Tensor | None:
    """(S, C) what each token earns for the teacher's sake; None where that is no advantage."""
    if options is None or options.kind != "sampled":
        return None
    assert portion.teacher is not None
    assert portion.old is not None
    teacher = portion.teacher.logprobs
    assert teacher is not None
    return sampled_advantages(portion.old, teacher, portion.mask, coef=options.coef, clip=options.clip)


def taught(
    terms: LossTerms, portion: Portion, chosen: ChosenLogprobs | None, options: DistillConfig | None, totals: Totals
) -> LossTerms:
    """The portion's loss with the teacher's term in it, and the figures that tell of the two."""
    if options is None or portion.teacher is None:
        return terms
    assert portion.old is not None
    sums: dict[str, Tensor] = {}
    if portion.teacher.logprobs is not None:
        sums = difference_sums(portion.old, portion.teacher.logprobs, portion.mask, clip=options.clip)
    tokens = portion.teacher.tokens
    if tokens is None or chosen is None:
        return replace(terms, sums=terms.sums | sums)
    trained = portion.mask[portion.rollout.loss_mask]
    term = divergence_loss(chosen, Support(tokens.ids, tokens.logprobs, tokens.tail), trained, options, totals)
    if tokens.overlap is not None:
        sums["distill/overlap"] = tokens.overlap.double().where(trained, 0.0).sum()
    return replace(terms, loss=terms.loss + term.loss, sums=terms.sums | sums | dict(term.sums))


@torch.no_grad()
def differences(portion: Portion) -> Tensor:
    """(M,) log q_old - log p of each token that is trained on; none where the two are of different temperatures."""
    assert portion.teacher is not None
    assert portion.old is not None
    if portion.teacher.logprobs is None:
        return portion.old.new_zeros(0)
    return (portion.old - portion.teacher.logprobs)[portion.mask]
