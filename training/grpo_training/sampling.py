"""Who samples: the policy itself, or another engine. A sampler is told prompts and a seed, and answers with a `Rollout`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from grpo_training.config import TrainConfig
from grpo_training.models import LoadedModel
from grpo_training.rollout import Rollout, sample


class Sampler(Protocol):
    """foreign: whether what samples is another program than what is trained, so that their log-probs may differ."""

    @property
    def foreign(self) -> bool: ...

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> Rollout:
        """A group of completions of each prompt, in the prompts' order. seed: everything random follows from it."""
        ...


@dataclass(frozen=True, slots=True)
class PolicySampler:
    """The weights that are trained, in this process."""

    config: TrainConfig
    loaded: LoadedModel

    @property
    def foreign(self) -> bool:
        return False

    def sample(self, prompts: Sequence[Sequence[int]], *, seed: int) -> Rollout:
        options = self.config.rollout
        return sample(
            self.loaded.model,
            prompts,
            group_size=options.group_size,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            eos_ids=self.loaded.eos_ids,
            seed=seed,
            normalizer=self.config.loss.normalizer,
        )
