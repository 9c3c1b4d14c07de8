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

from grpo_training.losses.grpo import group_advantages
from grpo_training.losses.objective import penalised
from grpo_training.rollouts.reference import Pending
from grpo_training.rollouts.rollout import Rollout
from grpo_training.run.figures import describe, rows_of
from grpo_training.run.parts import Clock, Parts, Scores, step_seed
from grpo_training.run.update import Update
from grpo_training.tasks.rewards import tell_unmeasured

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
    share = world.share(config)
    with clock("rollout"):
        everyones = parts.task.problems(step, config.rollout.prompts_per_step, config.trainer.seed)
        problems = [everyones[i] for i in share.prompts]
        parts.sampler.prepare(step)
        prompts = [p.prompt_ids for p in problems]
        rollout = parts.sampler.sample(prompts, seed=step_seed(config.trainer.seed, step), rows=share.rows)
    portions = rollout.split(config.trainer.gradient_accumulation)
    pending = parts.reference.submit(portions) if parts.reference else None
    with clock("reward"):
        texts = _texts(parts, rollout)
        of = [problems[i // rollout.group_size] for i in range(len(texts))]
        judged = [parts.task.judge(problem, text) for problem, text in zip(of, texts, strict=True)]
        tell_unmeasured(judged, [p.where for p in of], name=parts.task.reward_name, when=f"step {step + 1}")
        rewards = torch.tensor([j.reward for j in judged], dtype=torch.float64)
    scores: list[Scores] = [None] * len(portions)
    figures: dict[str, float] = {}
    earned = rewards
    if pending and config.loss.kl_in == "reward":
        scores, earned, figures = _penalise(parts, portions, pending, rewards, clock)
    rows = world.rows(rows_of(rollout, earned, rewards, judged), config)  # (S, 6) of all processes
    advantages = group_advantages(rows[:, 0], rollout.group_size, scale=config.loss.scale_advantages)[share.rows]
    kept = rows[share.rows, 0].isfinite()
    parts.watch.begin(step, parts.policy, portions)
    device = rollout.ids.device
    figures |= Update(parts, step, portions, advantages.to(device), kept.to(device), pending, scores, clock).run()
    figures |= world.maxima(parts.watch.figures(world.sum)) | describe(rows, rollout)
    slowest = {f"time/{name}_s": seconds for name, seconds in clock.seconds.items()}
    slowest["time/step_s"] = time.perf_counter() - started
    if pending:
        slowest["reference/latency_s"] = max(p.latency_s for p in pending)
    figures |= world.maxima(slowest)
    group = slice(0, rollout.group_size)
    return StepReport(figures, Sample(problems[0].prompt_text, texts[group], rewards[group].tolist()))


def _texts(parts: Parts, rollout: Rollout) -> list[str]:
    rows = [ids for group in rollout.completions() for ids in group]
    return list(parts.loaded.tokenizer.batch_decode(rows, skip_special_tokens=True))


def _penalise(
    parts: Parts, portions: list[Rollout], pending: list[Pending], rewards: Tensor, clock: Clock
) -> tuple[list[Scores], Tensor, dict[str, float]]:
    """The reference's scores, the rewards less the KL, and its figures. The reference is waited for before the update.

    What the policy itself sampled has its log-probs already; what another engine sampled is scored by the policy first. A
    completion that the reference could not score has no such reward: it is NaN.
    """
    options = parts.config.loss
    scores: list[Scores] = []
    earned: list[Tensor] = []
    total, tokens = 0.0, 0.0
    for portion, mine, under_way in zip(portions, rewards.chunk(len(portions)), pending, strict=True):
        policy = portion.logprobs
        if parts.sampler.foreign:
            with clock("forward"), torch.no_grad():
                policy = parts.policy.logprobs(portion)
        with clock("reference_wait"):
            reference, usable = under_way.collect()
        mask = portion.mask & usable[:, None]
        shaped, kl = penalised(mine.to(policy.device), policy, reference, mask, options)
        scores.append((reference, usable))
        earned.append(shaped.masked_fill(~usable, math.nan).cpu())
        here = float(mask.sum())
        total, tokens = total + kl * here, tokens + here
    total, tokens = parts.world.sum(torch.tensor([total, tokens], dtype=torch.float64)).tolist()
    return scores, torch.cat(earned), {"kl": total / tokens} if tokens else {}
