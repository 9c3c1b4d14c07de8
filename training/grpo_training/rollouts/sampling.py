"""Who samples: the policy itself, or another engine. A sampler is told prompts and a seed, and answers with a `Rollout`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from grpo_client import InvalidSetting
from grpo_client.addresses import read_key
from torch import Tensor

from grpo_training.config import ConfigError, TrainConfig
from grpo_training.distributed import World
from grpo_training.models.loading import LoadedModel
from grpo_training.rollouts.conversation import converse
from grpo_training.rollouts.environment import Asked, Environments
from grpo_training.rollouts.generation import sample
from grpo_training.rollouts.openai import OpenAISampler
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.weight_sync import WeightSync


class Sampler(Protocol):
    """foreign: whether what samples is another program than what is trained, so that their log-probs may differ."""

    @property
    def foreign(self) -> bool: ...

    def keep_below(self, vocab_size: int) -> None:
        """From here on ids lie below this: the reference knows no others."""
        ...

    def update_weights(self, step: int) -> None:
        """Step `step` (from 0) is about to sample: see to it that the weights are those that should."""
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], *, seed: int, rows: Tensor | None = None, asked: Sequence[Asked] = ()
    ) -> Rollout:
        """A group of completions of each prompt, in the prompts' order. seed: everything random follows from it.

        rows: their (S,) places among the completions of the whole step, where other processes sample the rest. asked: what
        the prompts are of, for an environment; without it the completions have one turn.
        """
        ...


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn. total: completions of the whole step, of which a process may draw some. top_k: how many of the likeliest
    ids are kept of each position."""

    group_size: int
    max_new_tokens: int
    temperature: float
    total: int
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class PolicySampler:
    """The weights that are trained, in this process."""

    config: TrainConfig
    loaded: LoadedModel
    policy: Policy
    world: World
    environments: Environments | None = None

    @property
    def foreign(self) -> bool:
        return False

    def keep_below(self, vocab_size: int) -> None:
        """The distribution that is sampled from is the policy's own."""

    def update_weights(self, step: int) -> None:
        """The weights are the policy's own."""

    def sample(
        self, prompts: Sequence[Sequence[int]], *, seed: int, rows: Tensor | None = None, asked: Sequence[Asked] = ()
    ) -> Rollout:
        options = self.config.rollout
        drawing = Drawing(
            group_size=options.group_size,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            total=options.prompts_per_step * options.group_size,
            top_k=0 if self.config.distillation is None else self.config.distillation.student_top_k,
        )
        return self.draw(prompts, drawing, seed=seed, rows=rows, asked=asked)

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        drawing: Drawing,
        *,
        seed: int,
        rows: Tensor | None = None,
        asked: Sequence[Asked] = (),
    ) -> Rollout:
        """`sample` with other settings than training's."""
        total = len(prompts) * drawing.group_size if rows is None else drawing.total

        def one_turn(
            contexts: Sequence[Sequence[int]],
            *,
            group_size: int,
            seed: int,
            places: Tensor | None,
            limits: Sequence[int] | None,
        ) -> Rollout:
            return sample(
                self.loaded.model,
                contexts,
                group_size=group_size,
                max_new_tokens=drawing.max_new_tokens,
                temperature=drawing.temperature,
                eos_ids=self.loaded.eos_ids,
                stops=self.loaded.stops,
                seed=seed,
                normalizer=self.config.loss.normalizer,
                vocab_size=self.policy.vocab_size,
                places=None if places is None else (places, total),
                limits=limits,
                top_k=drawing.top_k,
            )

        def turns() -> Rollout:
            size = drawing.group_size
            if self.environments is None or not asked:
                return one_turn(prompts, group_size=size, seed=seed, places=rows, limits=None)
            return converse(
                one_turn,
                self.environments,
                prompts,
                asked,
                group_size=size,
                max_new_tokens=drawing.max_new_tokens,
                seed=seed,
                device=self.loaded.model.device,
                places=rows,
            )

        with self.policy.autocast():
            return self.world.generate(turns)


@contextmanager
def open_sampler(
    config: TrainConfig,
    loaded: LoadedModel,
    policy: Policy,
    world: World,
    prompts: Sequence[Sequence[int]],
    environments: Environments | None = None,
) -> Iterator[Sampler]:
    """The sampler that the configuration names, for as long as the block lasts.

    A server is asked for a first rollout of `prompts`, so that what it cannot do ends the run before it begins. Raises
    RolloutError then, and ConfigError when the API key's variable is not set.
    """
    options = config.rollout
    if options.backend == "policy":
        yield PolicySampler(config, loaded, policy, world, environments)
        return
    if world.size > 1:
        raise ConfigError(f"rollout.backend={options.backend} is for one process, not {world.size}: leave it at policy")
    api_key = _key(options.api_key_env) if options.api_key_env else None
    sync = WeightSync(options, loaded, config.trainer.output / "served") if options.sync_every else None
    with OpenAISampler(
        options,
        eos_ids=loaded.eos_ids,
        vocab_size=loaded.model.config.get_text_config().vocab_size,
        device=loaded.model.device,
        api_key=api_key,
        bring_weights=sync,
        environments=environments,
    ) as sampler:
        sampler.check_temperature(policy, sampler.sample(prompts, seed=config.trainer.seed))
        yield sampler


def _key(variable: str) -> str:
    """A key from the environment. Only what looks like a variable's name is repeated: it may be the key itself."""
    named = variable if variable.isupper() else "of that name"
    try:
        key = read_key(os.environ.get(variable))
    except InvalidSetting as error:
        raise ConfigError(f"rollout.api_key_env: of the variable {named}: {error}") from error
    if not key:
        raise ConfigError(f"rollout.api_key_env: the environment has no variable {named}; set it to the server's key")
    return key
