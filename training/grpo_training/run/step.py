"""One GRPO step, from prompts to updated weights. The order is the point:

    sample groups  ->  send them to the reference  ->  reward  ->  the policy's forward  ->  collect the reference's
    log-probs  ->  loss, backward  ->  update

The reference works while rewards and the policy's forward are computed; how long the step then still waits for it is
measured. Everything random follows from (seed, step). Where several processes run, each does this with its own groups, and
what is counted, averaged or logged is the whole step's. What follows the rewards is in `update`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_training.distributed import RankGroups
from grpo_training.losses.grpo import group_advantages
from grpo_training.losses.objective import penalised
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run.figures import describe, function_figures, rows_of
from grpo_training.run.parts import Clock, Parts, step_seed
from grpo_training.run.portion import Portion
from grpo_training.run.texts import completed
from grpo_training.run.update import Update
from grpo_training.tasks.judging import Judgement
from grpo_training.tasks.prompting import Problem

__all__ = ["Parts", "Sample", "StepReport", "grpo_step", "step_seed"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One group of the step, to be looked at by a person. A reward that is not known is NaN."""

    prompt: str
    completions: list[str]
    rewards: list[float]


@dataclass(frozen=True, slots=True)
class StepReport:
    """figures: flat names and floats, for the metrics. sample: the step's first group."""

    figures: dict[str, float]
    sample: Sample


def grpo_step(parts: Parts, step: int) -> StepReport:
    """Do step number `step` (from 0) and say what happened."""
    config, world, clock, started = parts.config, parts.world, Clock(), time.perf_counter()
    mine = world.groups(config)
    problems, rollout = _sample(parts, step, mine, clock)
    rollouts = rollout.portions(config.trainer.gradient_accumulation)
    pending = parts.reference.submit(rollouts) if parts.reference else [None] * len(rollouts)
    portions = [Portion(*both) for both in zip(rollouts, pending, strict=True)]
    with clock("reward"):
        texts, judgement = _judge(parts, step, problems, rollout)
        rewards = torch.tensor([j.reward for j in judgement.judged], dtype=torch.float64)
    earned, figures = rewards, {}
    if parts.reference and config.loss.kl_in == "reward":
        earned, figures = _penalise(parts, portions, rewards, clock)
    rows = world.rows(rows_of(rollout, earned, judgement.judged), config)  # (S, 7 + K) of all processes
    advantages = group_advantages(rows[:, 0], rollout.group_size, scale=config.loss.scale_advantages)[mine.rows]
    known = rows[mine.rows, 0].isfinite()
    for portion, *row in zip(portions, advantages.chunk(len(portions)), known.chunk(len(portions)), strict=True):
        portion.rewarded(*row)
    parts.watch.begin(step, parts.policy, rollouts)
    figures |= Update(parts, step, portions, clock).run()
    figures |= world.maxima(parts.watch.figures(world.sum)) | describe(rows, rollout, parts.task.reward_names)
    figures |= function_figures(judgement, world)
    slowest = {f"time/{name}_s": seconds for name, seconds in clock.seconds.items()}
    slowest["time/step_s"] = time.perf_counter() - started
    if parts.reference:
        slowest["reference/latency_s"] = max(portion.latency_s for portion in portions)
    figures |= world.maxima(slowest)
    group = slice(0, rollout.group_size)
    return StepReport(figures, Sample(problems[0].prompt_text, texts[group], rewards[group].tolist()))


def _sample(parts: Parts, step: int, mine: RankGroups, clock: Clock) -> tuple[list[Problem], Rollout]:
    """This rank's problems of the step, and its groups."""
    config = parts.config
    with clock("rollout"):
        everyones = parts.task.problems(step, config.rollout.prompts_per_step, config.trainer.seed)
        problems = [everyones[i] for i in mine.prompts]
        parts.sampler.update_weights(step)
        prompts = [p.prompt_ids for p in problems]
        return problems, parts.sampler.sample(prompts, seed=step_seed(config.trainer.seed, step), rows=mine.rows)


def _judge(parts: Parts, step: int, problems: list[Problem], rollout: Rollout) -> tuple[list[str], Judgement]:
    """The text of each completion, and what it earned."""
    completions = completed(parts.loaded.tokenizer, problems, rollout)
    return [c.text for c in completions], parts.task.judge_all(completions, when=f"step {step + 1}", step=step)


def _penalise(parts: Parts, portions: list[Portion], rewards: Tensor, clock: Clock) -> tuple[Tensor, dict[str, float]]:
    """The rewards less the KL, and its figures. The reference is waited for before the update.

    What the policy itself sampled has its log-probs already; what another engine sampled is scored by the policy first. A
    completion that the reference could not score has no such reward: it is NaN.
    """
    earned: list[Tensor] = []
    total, tokens = 0.0, 0.0
    for portion, mine in zip(portions, rewards.chunk(len(portions)), strict=True):
        policy = portion.rollout.logprobs
        if parts.sampler.foreign:
            with clock("forward"), torch.no_grad():
                policy = parts.policy.logprobs(portion.rollout)
        with clock("reference_wait"):
            portion.collect()
        assert portion.reference is not None
        shaped, kl = penalised(mine.to(policy.device), policy, portion.reference, portion.mask, parts.config.loss)
        earned.append(shaped.masked_fill(~portion.usable, math.nan).cpu())
        here = float(portion.mask.sum())
        total, tokens = total + kl * here, tokens + here
    total, tokens = parts.world.sum(torch.tensor([total, tokens], dtype=torch.float64)).tolist()
    return torch.cat(earned), {"kl": total / tokens} if tokens else {}
