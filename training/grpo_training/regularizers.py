"""The public path of `losses.regularizers`: what may stand beside the policy term."""

from grpo_training.losses.regularizers import entropy_bonus, high_entropy_mask, kl_in_reward

__all__ = ["entropy_bonus", "high_entropy_mask", "kl_in_reward"]
