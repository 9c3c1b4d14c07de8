"""The public path of `losses.advantages`: what each completion earned beside its group."""

from grpo_training.losses.advantages import ADVANTAGE_EPS, group_advantages

__all__ = ["ADVANTAGE_EPS", "group_advantages"]
