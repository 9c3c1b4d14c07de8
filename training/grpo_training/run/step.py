"""One GRPO step, from prompts to updated weights. The order is the point:

    sample groups  ->  send them to reference and teacher  ->  reward  ->  the policy's forward  ->  collect the reference's
    log-probs  ->  loss, backward  ->  update

The reference works while rewards and the policy's forward are computed; how long the step then still waits for it is
measured. Everything random follows from (seed, step). Where several processes run, each does this with its own groups, and
what is counted, averaged or logged is the whole step's. How groups come about is in `groups`,
and what follows the rewards in `update`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_training.losses.grpo import group_advantages
from grpo_training.losses.objective import penalised
from grpo_training.run.figures import describe, function_figures, rows_of, turn_figures
from grpo_training.run.groups import gather, shaped
from grpo_training.run.parts import Clock, Parts, step_seed
from grpo_training.run.portion import Portion
from grpo_training.run.samples import Sample, samples_of
from grpo_training.run.teachers import names_of, teacher_figures
from grpo_training.run.update import Update

__all__ = ["Parts", "Sample", "StepReport", "grpo_step", "step_seed"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """figures: flat names and floats, for the metrics. samples: the groups that are kept, one at least."""

    figures: dict[str, float]
    samples: list[Sample]


def grpo_step(parts: Parts, step: int) -> StepReport:
    """Do step number `step` (from 0) and say what happened."""
    config, world, clock, started = parts.config, parts.world, Clock(), time.perf_counter()
    mine = world.groups(config)
    groups = gather(parts, step, mine, clock)
    rollout, rewards = groups.rollout, groups.rewards
    rollouts = rollout.portions(config.trainer.portions)
    portions = [
        Portion(part, pending, lesson, mask_truncated=config.loss.mask_truncated)
        for part, pending, lesson in zip(rollouts, groups.pending, groups.lessons, strict=True)
    ]
    earned, figures = shaped(parts, rollout, rewards), groups.figures
    if parts.reference and config.loss.kl_in == "reward":
        earned, more = _penalise(parts, portions, earned, clock)
        figures |= more
    rows = world.rows(rows_of(rollout, earned, groups.judgement.judged), config)  # (S, 7 + K) of all processes
    advantages = group_advantages(rows[:, 0], rollout.group_size, scale=config.loss.scale_advantages)[mine.rows]
    known = rows[mine.rows, 0].isfinite()
    if not config.task_trains:  # then a reward that is not known keeps nothing from being learnt
        advantages, known = torch.zeros_like(advantages), torch.ones_like(known)
    for portion, *row in zip(portions, advantages.chunk(len(portions)), known.chunk(len(portions)), strict=True):
        portion.rewarded(*row)
    parts.watch.begin(step, parts.policy, rollouts)
    figures |= Update(parts, step, portions, clock).run()
    if config.distillation is not None:
        figures |= teacher_figures(portions, names_of(groups.problems, config), config.distillation, world)
    figures |= world.maxima(parts.watch.figures(world.sum))
    figures |= describe(rows, rollout, parts.task.reward_names, kl=config.loss.kl_in == "reward")
    figures |= turn_figures(rollout, world)
    if not config.task_trains:
        del figures["reward/flat_groups"]  # equal rewards are no loss where no reward is trained on
    figures |= function_figures(groups.judgement, world)
    if world.main:
        parts.endings.saw(step, figures["completion/ended"])
    slowest = {f"time/{name}_s": seconds for name, seconds in clock.seconds.items()}
    slowest["time/step_s"] = time.perf_counter() - started
    if parts.reference:
        figures["reference/version"] = float(parts.reference.info.version)
        slowest["reference/latency_s"] = max(portion.latency_s for portion in portions)
    if parts.teachers:
        slowest["teacher/latency_s"] = max(portion.lesson_latency_s for portion in portions)
    figures |= world.maxima(slowest)
    return StepReport(figures, samples_of(parts, step, portions, groups))


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
        shaped, kl = penalised(mine.to(policy.device), policy, portion.reference, portion.scored, parts.config.loss)
        earned.append(shaped.masked_fill(~portion.usable, math.nan).cpu())
        here = float(portion.scored.sum())
        total, tokens = total + kl * here, tokens + here
    total, tokens = parts.world.sum(torch.tensor([total, tokens], dtype=torch.float64)).tolist()
    return torch.cat(earned), {"kl": total / tokens} if tokens else {}
