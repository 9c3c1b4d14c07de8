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
from grpo_training.distributed import Share, World
from grpo_training.losses import LossTerms, Totals, group_advantages, mean_metrics, policy_loss
from grpo_training.models import LoadedModel
from grpo_training.policy import Policy
from grpo_training.reference import Pending, Reference
from grpo_training.rollout import Rollout, sample
from grpo_training.sharding import whole
from grpo_training.tasks import Judged, Problem, Task


@dataclass(frozen=True)
class Parts:
    """What a step works with. reference is None when beta is 0: then nothing is asked of the server."""

    config: TrainConfig
    loaded: LoadedModel
    policy: Policy
    task: Task
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
        rollout = _sample(parts, problems, step, share)
    portions = rollout.split(config.trainer.gradient_accumulation)
    pending = parts.reference.submit(portions) if parts.reference else None
    with clock("reward"):
        texts = _texts(parts, rollout)
        judged = [parts.task.judge(problems[i // rollout.group_size], text) for i, text in enumerate(texts)]
        rewards = torch.tensor([j.reward for j in judged])
        rows = world.rows(_rows(rollout, rewards, judged), config)  # (S, 5) of all processes
        advantages = group_advantages(rows[:, 0], rollout.group_size, scale=config.loss.scale_advantages)[share.rows]
    figures = _update(parts, step, portions, advantages.to(rollout.ids.device), pending, clock)
    figures |= _describe(rows, rollout.group_size)
    slowest = {f"time/{name}_s": seconds for name, seconds in clock.seconds.items()}
    slowest["time/step_s"] = time.perf_counter() - started
    if pending:
        slowest["reference/latency_s"] = max(p.latency_s for p in pending)
    figures |= world.maxima(slowest)
    group = slice(0, rollout.group_size)
    return StepReport(figures, Sample(problems[0].prompt_text, texts[group], rewards[group].tolist()))


def _sample(parts: Parts, problems: list[Problem], step: int, share: Share) -> Rollout:
    config = parts.config

    def draw() -> Rollout:
        return sample(
            parts.loaded.model,
            [p.prompt_ids for p in problems],
            group_size=config.rollout.group_size,
            max_new_tokens=config.rollout.max_new_tokens,
            temperature=config.rollout.temperature,
            eos_ids=parts.loaded.eos_ids,
            seed=step_seed(config.trainer.seed, step),
            normalizer=config.loss.normalizer,
            places=(share.rows, config.rollout.prompts_per_step * config.rollout.group_size),
        )

    with parts.policy.autocast():
        return parts.world.generate(draw)


def _texts(parts: Parts, rollout: Rollout) -> list[str]:
    rows = [ids for group in rollout.completions() for ids in group]
    return list(parts.loaded.tokenizer.batch_decode(rows, skip_special_tokens=True))


def _update(
    parts: Parts, step: int, portions: list[Rollout], advantages: Tensor, pending: list[Pending] | None, clock: Clock
) -> dict[str, float]:
    """Optimizer steps on one batch of rollouts; returns the figures of the last one."""
    config, world = parts.config, parts.world
    totals = Totals(
        sequences=sum(len(p.ids) for p in portions) * world.size,
        tokens=int(world.sum(torch.stack([p.mask.sum() for p in portions])).sum()),
        portions=len(portions),
        max_tokens=config.rollout.max_new_tokens,
    )
    shares = advantages.chunk(len(portions))
    old: list[Tensor | None] = [None] * len(portions)
    scores: list[tuple[Tensor, Tensor] | None] = [None] * len(portions)
    figures: dict[str, float] = {}
    if config.lora is not None and config.lora.dropout > 0:  # the one thing that draws from torch's own generator
        torch.manual_seed(step_seed(config.trainer.seed, step) + world.rank)
    for iteration in range(config.trainer.iterations):
        terms: list[LossTerms] = []
        gap = torch.zeros(())
        for i, portion in enumerate(portions):
            with clock("forward"):
                logprobs = world.forward(lambda of=portion: parts.policy.logprobs(of), last=i + 1 == len(portions))
            if pending and scores[i] is None:
                with clock("reference_wait"):
                    scores[i] = pending[i].collect()
            if iteration == 0:
                # What sampled and what is trained are the same weights: a gap is the error of one of the two.
                gap = torch.maximum(gap, (logprobs.detach() - portion.logprobs).abs().max().cpu())
                old[i] = logprobs.detach()
            with clock("backward"):
                terms.append(_portion_loss(parts, portion, logprobs, shares[i], old[i], scores[i], totals))
                world.backward(terms[-1].loss)
        if iteration == 0:
            figures |= world.maxima({"policy/sampler_gap": float(gap)})
        with clock("optimizer"):
            figures |= mean_metrics(terms, summed=world.sum) | _optimize(parts)
    parts.scheduler.step()
    return figures


def _portion_loss(
    parts: Parts,
    portion: Rollout,
    logprobs: Tensor,
    advantages: Tensor,
    old: Tensor | None,
    scores: tuple[Tensor, Tensor] | None,
    totals: Totals,
) -> LossTerms:
    reference, usable = scores if scores is not None else (None, None)
    mask = portion.mask if usable is None else portion.mask & usable[:, None]
    if parts.config.loss.kind == "bnpo":
        totals = replace(totals, portion_tokens=int(parts.world.sum(mask.sum())))
    return policy_loss(logprobs, advantages, mask, parts.config.loss, totals, old_logprobs=old, ref_logprobs=reference)


def _optimize(parts: Parts) -> dict[str, float]:
    """Clip, step, clear. A step whose gradient is not finite is left out, and counted."""
    limit = parts.config.optimizer.max_grad_norm
    norm = torch.nn.utils.clip_grad_norm_(parts.loaded.model.parameters(), float("inf") if limit is None else limit)
    norm = whole(norm)
    usable = bool(torch.isfinite(norm))
    lr = float(parts.optimizer.param_groups[0]["lr"])
    if usable:
        parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    return {"policy/grad_norm": float(norm), "policy/lr": lr, "policy/skipped": float(not usable)}


def _rows(rollout: Rollout, rewards: Tensor, judged: list[Judged]) -> Tensor:
    """(S, 5) what the figures are made of, a line for each completion: reward, correct, length, ended, summed entropy."""
    correct = torch.tensor([float(j.correct) for j in judged])
    columns = (rewards, correct, rollout.lengths, rollout.ended, rollout.entropy.sum(-1))
    return torch.stack([column.double().cpu() for column in columns], dim=1)


def _describe(rows: Tensor, group_size: int) -> dict[str, float]:
    rewards, correct, lengths, ended, entropy = rows.unbind(1)
    grouped = rewards.view(-1, group_size)
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()) if len(rewards) > 1 else 0.0,
        "reward/correct": float(correct.mean()),
        # Groups whose rewards are all equal teach nothing.
        "reward/flat_groups": float((grouped == grouped[:, :1]).all(-1).double().mean()),
        "completion/length": float(lengths.mean()),
        "completion/length_max": float(lengths.max()),
        "completion/ended": float(ended.mean()),
        "completion/tokens": float(lengths.sum()),
        "policy/entropy": float(entropy.sum() / lengths.sum()),
    }
