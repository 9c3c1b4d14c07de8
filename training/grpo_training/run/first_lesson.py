"""What is found out of a teacher before the first step: that it equals a policy which starts as its teacher.

A policy that starts as its teacher has nothing to learn yet: its first loss is 0 up to rounding. One position off, another
temperature or other weights make it something else, so this proves the whole way from one to the other.
"""

from __future__ import annotations

import logging

import torch

from grpo_training.config import ConfigError, TrainConfig
from grpo_training.losses.distillation import Support
from grpo_training.losses.grpo import Totals
from grpo_training.losses.teaching import divergence_loss
from grpo_training.run.parts import Clock, Parts
from grpo_training.run.portion import Portion
from grpo_training.run.teaching import differences, forward

logger = logging.getLogger(__name__)

_EQUAL = 1e-6  # nats a token, in float32
_EQUAL_IN_16_BITS = 1e-3


def check_first_lesson(parts: Parts, prompts: list[list[int]], *, new: bool) -> None:
    """Teach one rollout of `prompts` without a step. new: the weights are those that the run starts from.

    Raises ConfigError where a policy that was said to start as its teacher does not; warns where only their names are equal.
    """
    options, teachers = parts.config.distillation, parts.teachers
    if options is None or teachers is None or not new:
        return
    for name, info in teachers.info.items():
        same_name = info.model == parts.config.model.name
        if not (options.starts_equal or same_name):
            continue
        loss = first_loss(parts, prompts, name)
        halved = info.dtype != "float32" or _narrow(parts.config)
        limit = _EQUAL_IN_16_BITS if halved else _EQUAL
        if loss < limit:
            logger.info("teacher %s equals the policy: its first loss is %.2g", name, loss)
            continue
        told = (
            f"teacher {name} ({info.model}): the policy's first loss is {loss:.3g} nats a token, and of equal models it is "
            f"below {limit:g}: other weights, another temperature or normalizer, or positions that are off by one"
        )
        if options.starts_equal:
            raise ConfigError(f"distillation.starts_equal: {told}")
        logger.warning("%s. Both are called %s; are they meant to be equal?", told, info.model)


@torch.no_grad()
def first_loss(parts: Parts, prompts: list[list[int]], name: str) -> float:
    """Mean over tokens of the divergence, or of half the squared difference where the sampled tokens alone are compared."""
    config = parts.config
    assert config.distillation is not None
    assert parts.teachers is not None
    rollout = parts.sampler.sample(prompts, seed=config.trainer.seed)
    portion = Portion(rollout, lesson=parts.teachers.submit([rollout], [name] * len(prompts))[0])
    logprobs, _, chosen = parts.world.generate(lambda: forward(parts, portion, Clock()))
    portion.learn()
    portion.old = logprobs
    assert portion.teacher is not None
    tokens, count = portion.teacher.tokens, int(portion.mask.sum())
    if not count:
        raise ConfigError(f"teacher {name} could score none of the first completions: NaN or infinite log-probs")
    if tokens is None or chosen is None:
        return float(differences(portion).double().square().mean() / 2)
    trained = portion.mask[rollout.loss_mask]
    options = config.distillation.model_copy(update={"coef": 1.0})
    totals = Totals(len(rollout.ids), count, 1, config.rollout.max_new_tokens)
    return float(
        divergence_loss(chosen, Support(tokens.ids, tokens.logprobs, tokens.tail), trained, options, totals).loss
    )


def _narrow(config: TrainConfig) -> bool:
    return config.model.dtype == "bfloat16" or config.model.precision == "bf16"
