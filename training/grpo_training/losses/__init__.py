"""The GRPO loss as functions: tensors in, loss and metrics out.

    grpo           the policy term and its averages, the KL, the rollout correction
    advantages     what each completion earned beside its group
    regularizers   entropy bonus, mask of the uncertain tokens, KL inside the reward
    distillation   divergences from a teacher that tells a few log-probs a position
    objective      all of it together, as a run's configuration says
    masks          masks and figures as callers give them

Nothing here knows models, servers or optimizers.
"""

from grpo_training.losses.advantages import ADVANTAGE_EPS, group_advantages, overlong_penalty
from grpo_training.losses.grpo import (
    LossTerms,
    Totals,
    importance_ratio,
    kl_term,
    mean_metrics,
    policy_loss,
    rollout_correction,
)
from grpo_training.losses.regularizers import entropy_bonus, high_entropy_mask, kl_in_reward

__all__ = [
    "ADVANTAGE_EPS",
    "LossTerms",
    "Totals",
    "entropy_bonus",
    "group_advantages",
    "high_entropy_mask",
    "importance_ratio",
    "kl_in_reward",
    "kl_term",
    "mean_metrics",
    "overlong_penalty",
    "policy_loss",
    "rollout_correction",
]
