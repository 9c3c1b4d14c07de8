"""One GRPO step, from prompts to updated weights. The order is the point:

    sample groups  ->  send them to the reference  ->  reward  ->  the policy's forward  ->  collect the reference's
    log-probs  ->  loss, backward  ->  update

The reference works while rewards and the policy's forward are computed; how long the step then still waits for it is
measured. Everything random follows from (seed, step). Where several processes run, each does this with its own groups, and
what is counted, averaged or logged is the whole step's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from grpo_training.config import TrainConfig
from grpo_training.distributed import World
from grpo_training.losses import LossTerms, Totals, group_advantages, mean_metrics
from grpo_training.models import LoadedModel
from grpo_training.objective import (
    PortionData,
    correction_in_use,
    needs_entropies,
    penalised,
    portion_loss,
)
from grpo_training.policy import Policy
from grpo_training.reference import Pending, Reference
from grpo_training.rollout import Rollout
from grpo_training.sampling import Sampler
from grpo_training.sharding import whole
from grpo_training.step_figures import describe, rows_of
from grpo_training.tasks import Task
from grpo_training.watch import CollapseWatch


@dataclass(frozen=True)
class Parts:
    """What a step works with. reference is None when beta is 0: then nothing is asked of the server."""

    config: TrainConfig
    loaded: LoadedModel
    policy: Policy
    task: Task
    sampler: Sampler
    watch: CollapseWatch
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    reference: Reference | None
    world: World


@dataclass(frozen=True, slots=True)
class Sample:
    """One group of the step, to be looked at by a person."""

    prompt: str
    completions: list[str]
    rewards: list[float]


@dataclass(frozen=True, slots=True)
class StepReport:
    """figures: flat names and floats, for the metrics. sample: the step's first group."""

    figures: dict[str, float]
    sample: Sample


# (S, C) log-probs and (S,) which of them may be used; None while they have not been collected.
Scores = tuple[Tensor, Tensor] | None


class Clock:
    """Seconds spent in each named part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def step_seed(seed: int, step: int) -> int:
    """A seed for this step alone, unrelated to its neighbours'."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
        judged = [parts.task.judge(problems[i // rollout.group_size], text) for i, text in enumerate(texts)]
        rewards = torch.tensor([j.reward for j in judged])
    scores: list[Scores] = [None] * len(portions)
    figures: dict[str, float] = {}
    earned = rewards
    if pending and config.loss.kl_in == "reward":
        scores, earned, figures = _penalise(parts, portions, pending, rewards, clock)
    rows = world.rows(rows_of(rollout, earned, rewards, judged), config)  # (S, 6) of all processes
    advantages = group_advantages(rows[:, 0], rollout.group_size, scale=config.loss.scale_advantages)[share.rows]
    parts.watch.begin(step, parts.policy, portions)
    figures |= _update(parts, step, portions, advantages.to(rollout.ids.device), pending, scores, clock)
    figures |= world.maxima(parts.watch.figures()) | describe(rows, rollout)
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

    What the policy itself sampled has its log-probs already; what another engine sampled is scored by the policy first.
    """
    options = parts.config.loss
    scores: list[Scores] = []
    earned: list[Tensor] = []
    figures = {"kl": 0.0}
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
        earned.append(shaped.cpu())
        figures["kl"] += kl * float(portion.mask.sum())
    tokens = float(sum(p.mask.sum() for p in portions))
    whole_step = parts.world.sum(torch.tensor([figures["kl"], tokens], dtype=torch.float64))
    figures["kl"] = float(whole_step[0] / whole_step[1])
    return scores, torch.cat(earned), figures


def _update(
    parts: Parts,
    step: int,
    portions: list[Rollout],
    advantages: Tensor,
    pending: list[Pending] | None,
    scores: list[Scores],
    clock: Clock,
) -> dict[str, float]:
    """Optimizer steps on one batch of rollouts; returns the figures of the last one."""
    config, world = parts.config, parts.world
    totals = Totals(
        sequences=sum(len(p.ids) for p in portions) * world.size,
        tokens=int(world.sum(torch.stack([p.mask.sum() for p in portions])).sum()),
        portions=len(portions),
        max_tokens=config.rollout.max_new_tokens,
    )
    correction = correction_in_use(config.loss, foreign=parts.sampler.foreign)
    shares = advantages.chunk(len(portions))
    old: list[Tensor | None] = [None] * len(portions)
    figures: dict[str, float] = {}
    if config.lora is not None and config.lora.dropout > 0:  # the one thing that draws from torch's own generator
        torch.manual_seed(step_seed(config.trainer.seed, step) + world.rank)
    for iteration in range(config.trainer.iterations):
        terms: list[LossTerms] = []
        gap = torch.zeros(())
        for i, portion in enumerate(portions):
            with clock("forward"):
                entropies_too = needs_entropies(config.loss) or portion.entropy is None
                logprobs, entropies = world.forward(
                    lambda of=portion, too=entropies_too: parts.policy.scores(of, entropies=too),
                    last=i + 1 == len(portions),
                )
            if pending and scores[i] is None:
                with clock("reference_wait"):
                    scores[i] = pending[i].collect()
            if iteration == 0:
                # With the policy as its own sampler the weights are the same: a gap is the error of one of the two.
                gap = torch.maximum(gap, (logprobs.detach() - portion.logprobs).abs().max().cpu())
                old[i] = logprobs.detach()
                parts.watch.saw_terms(logprobs, portion.mask)
            reference, usable = scores[i] or (None, None)
            before = old[i]
            assert before is not None
            data = PortionData(
                logprobs=logprobs,
                entropies=entropies,
                old=before,
                sampler=portion.logprobs,
                reference=reference,
                mask=portion.mask if usable is None else portion.mask & usable[:, None],
                advantages=shares[i],
            )
            with clock("backward"):
                portion_totals = totals
                if config.loss.kind == "bnpo":
                    portion_totals = replace(totals, portion_tokens=int(world.sum(data.mask.sum())))
                terms.append(portion_loss(data, config.loss, portion_totals, correction=correction))
                world.backward(terms[-1].loss)
        if iteration == 0:
            figures |= world.maxima({"policy/sampler_gap": float(gap)})
        with clock("optimizer"):
            figures |= mean_metrics(terms, summed=world.sum) | _optimize(parts)
    parts.scheduler.step()
    return figures


def _optimize(parts: Parts) -> dict[str, float]:
    """Clip, step, clear. A step whose gradient is not finite is left out, and counted."""
    limit = parts.config.optimizer.max_grad_norm
    norm = torch.nn.utils.clip_grad_norm_(parts.loaded.model.parameters(), float("inf") if limit is None else limit)
    norm = whole(norm)
    usable = bool(torch.isfinite(norm))
    lr = float(parts.optimizer.param_groups[0]["lr"])
    if usable:
        parts.watch.before_update(parts.loaded.model.parameters())
        parts.optimizer.step()
        parts.watch.after_update()
    parts.optimizer.zero_grad(set_to_none=True)
    return {"policy/grad_norm": float(norm), "policy/lr": lr, "policy/skipped": float(not usable)}
