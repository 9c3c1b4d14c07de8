"""What may stand beside the policy term: an entropy bonus, a mask of the uncertain tokens, the KL inside the reward.

    terms = policy_loss(..., weights=high_entropy_mask(entropies, mask, 0.2))
    loss = terms.loss - coefficient * entropy_bonus(entropies, mask, portions=totals.portions)

Values and gradients as TRL's GRPOTrainer 1.16 has them (`top_entropy_quantile`, `entropy_coef`). The KL in the loss is
`grpo.policy_loss`'s. Shape letters: S sequences, C completion tokens (padded).
"""

from __future__ import annotations

import torch
from grpo_numerics.transforms import upcast, widened
from torch import Tensor

from grpo_training.config import KlKind
from grpo_training.losses.grpo import kl_term
from grpo_training.losses.masks import boolean_mask


@torch.no_grad()
def high_entropy_mask(entropies: Tensor, mask: Tensor, top: float, *, everywhere: Tensor | None = None) -> Tensor:
    """(S, C) bool: the share `top` of the tokens whose entropy is largest, among those in the mask.

    entropies: (S, C), nats. mask: (S, C), bool or 0 and 1. top: in (0, 1]. everywhere: (N,) entropies of the unmasked tokens
    of all processes, to set one threshold for all; None: these. To be multiplied into the policy term (`weights`), which
    leaves the KL alone.
    Wang et al., "Beyond the 80/20 Rule", 2025, arXiv 2506.01939.
    """
    if not 0.0 < top <= 1.0:
        raise ValueError(f"top is a share of the tokens, in (0, 1], got {top}")
    mask = boolean_mask(mask, entropies.shape)
    values = entropies[mask] if everywhere is None else everywhere
    if values.numel() == 0:
        return torch.zeros_like(mask)
    threshold = torch.quantile(values.to(torch.promote_types(values.dtype, torch.float32)), 1.0 - top)
    return (entropies >= threshold) & mask


def entropy_bonus(entropies: Tensor, mask: Tensor, *, portions: int = 1, tokens: int | None = None) -> Tensor:
    """Scalar with gradient: this portion's share of the mean entropy of a token, to be subtracted times a coefficient.

    entropies: (S, C), nats, with gradient; what the mask hides may be anything. mask: (S, C), bool or 0 and 1. portions: into
    how many the step is cut. tokens: unmasked ones of this portion over all processes; None: these. With
    `high_entropy_mask` in use give its result as the mask, so that both act on the same tokens.
    """
    mask = boolean_mask(mask, entropies.shape)
    total = widened(entropies, upcast(entropies).dtype).where(mask, 0.0).sum()
    return total / (mask.sum().clamp(min=1) if tokens is None else max(tokens, 1)) / max(portions, 1)


@torch.no_grad()
def kl_in_reward(
    rewards: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, beta: float, kind: KlKind = "k1"
) -> Tensor:
    """(S,) rewards less beta times each completion's KL, summed over its tokens; set the loss's own beta to 0 then.

    rewards: (S,). logprobs, ref_logprobs: (S, C) of the policy that sampled and of the reference. mask: (S, C), bool or 0
    and 1. With k1 the sum is
    log pi / pi_ref of the whole completion, as in Ouyang et al., arXiv 2203.02155.
    """
    mask = boolean_mask(mask, logprobs.shape)
    kl = kl_term(logprobs.where(mask, 0.0), ref_logprobs.where(mask, 0.0), kind=kind)
    return rewards - beta * kl.where(mask, 0.0).sum(-1)
