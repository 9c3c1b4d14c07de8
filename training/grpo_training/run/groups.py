"""The first half of a step: groups are sampled, sent to the reference and rewarded; some may be sampled anew.

A group whose rewards are all equal has no advantage and no gradient. With `rollout.resample` such groups are replaced, round
by round, by groups of other prompts (DAPO's dynamic sampling, Yu et al., arXiv 2503.14476), and what is left goes to the
reference. What round r of step n samples follows from (seed, n, r).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grpo_training.distributed import RankGroups
from grpo_training.losses.advantages import overlong_penalty
from grpo_training.rollouts.reference import Pending
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.teacher import Lesson
from grpo_training.run.parts import Clock, Parts, step_seed
from grpo_training.run.teachers import names_of
from grpo_training.run.texts import completed
from grpo_training.tasks.calling import Completion
from grpo_training.tasks.judging import Judged, Judgement
from grpo_training.tasks.prompting import Problem


@dataclass(slots=True)
class Groups:
    """K groups of this rank. judgement: of their S completions, with the errors and seconds of those replaced as well.
    pending, lessons: the scores of reference and teacher for each portion, under way. figures: what sampling anew has done,
    over all ranks."""

    problems: list[Problem]
    rollout: Rollout
    completions: list[Completion]
    judgement: Judgement
    pending: list[Pending | None]
    lessons: list[Lesson | None]
    figures: dict[str, float]

    @property
    def rewards(self) -> Tensor:
        """(S,) fp64, NaN where they are not known."""
        return _rewards(self.judgement)


def gather(parts: Parts, step: int, mine: RankGroups, clock: Clock) -> Groups:
    """This rank's groups of step `step`."""
    config, rounds = parts.config, parts.config.rollout.resample
    with clock("rollout"):
        parts.sampler.update_weights(step)
        problems = _problems(parts, step, mine, config.trainer.seed)
        rollout = _sampled(parts, problems, step_seed(config.trainer.seed, step), mine.rows)
    pending, lessons = ([], []) if rounds else _sent(parts, problems, rollout)
    with clock("reward"):
        completions = completed(parts.loaded.tokenizer, problems, rollout)
        judgement = parts.task.judge_all(completions, when=f"step {step + 1}", step=step)
    groups = Groups(problems, rollout, completions, judgement, pending, lessons, {})
    if rounds:
        _resample(parts, step, mine, clock, groups)
        groups.pending, groups.lessons = _sent(parts, groups.problems, groups.rollout)
    return groups


def shaped(parts: Parts, rollout: Rollout, rewards: Tensor) -> Tensor:
    """(S,) rewards less what a completion loses by its length."""
    options = parts.config
    penalty = overlong_penalty(rollout.lengths.cpu(), options.rollout.max_new_tokens, options.loss.overlong_buffer)
    return rewards + options.loss.overlong_penalty * penalty


def without_signal(rewards: Tensor, group_size: int) -> list[int]:
    """Places of the groups, (S,) rewards, that have no two rewards that differ; what is not known does not count."""
    grouped = rewards.view(-1, group_size)
    known = grouped.isfinite()
    low = grouped.masked_fill(~known, torch.inf).amin(1)
    high = grouped.masked_fill(~known, -torch.inf).amax(1)
    return (~(high > low)).nonzero().flatten().tolist()


def _resample(parts: Parts, step: int, mine: RankGroups, clock: Clock, groups: Groups) -> None:
    """Replace groups without signal by new ones that have some, until there are none or the rounds are over."""
    config, world, size = parts.config, parts.world, groups.rollout.group_size
    counts: list[float] = []  # of groups without signal over all ranks, before each round and after the last
    for number in range(1, config.rollout.resample + 2):
        flat = without_signal(shaped(parts, groups.rollout, groups.rewards), size)
        counts.append(float(world.sum(torch.tensor([len(flat)]))[0]))
        if not counts[-1] or number > config.rollout.resample:
            break
        if flat:
            _replace(parts, step, number, mine, clock, groups, flat)
    prompts = config.rollout.prompts_per_step
    groups.figures = {
        "rollout/resampled": sum(counts[:-1]),
        "rollout/signal_first": 1 - counts[0] / prompts,
        "rollout/signal": 1 - counts[-1] / prompts,
    }


def _replace(
    parts: Parts, step: int, number: int, mine: RankGroups, clock: Clock, groups: Groups, flat: list[int]
) -> None:
    size = groups.rollout.group_size
    seeds = np.random.SeedSequence((parts.config.trainer.seed, step, number)).generate_state(2, np.uint32)
    with clock("rollout"):
        others = _problems(parts, step, mine, int(seeds[0]))
        problems = [others[k] for k in flat]
        rollout = _sampled(parts, problems, int(seeds[1]), mine.rows.view(-1, size)[flat].flatten())
    with clock("reward"):
        completions = completed(parts.loaded.tokenizer, problems, rollout)
        when = f"step {step + 1}, sampled anew"
        judgement = parts.task.judge_all(completions, when=when, step=step)
    still = set(without_signal(shaped(parts, rollout, _rewards(judgement)), size))
    taken = [i for i in range(len(flat)) if i not in still]
    judged: list[Judged] = list(groups.judgement.judged)
    for i in taken:
        place, new = flat[i], slice(i * size, (i + 1) * size)
        old = slice(place * size, (place + 1) * size)
        groups.problems[place] = problems[i]
        groups.completions[old] = completions[new]
        judged[old] = judgement.judged[new]
    if taken:
        groups.rollout = groups.rollout.replaced([flat[i] for i in taken], rollout.chosen(taken))
    groups.judgement = Judgement(
        judged,
        {name: count + judgement.errors[name] for name, count in groups.judgement.errors.items()},
        {name: spent + judgement.seconds[name] for name, spent in groups.judgement.seconds.items()},
    )


def _problems(parts: Parts, step: int, mine: RankGroups, seed: int) -> list[Problem]:
    everyones = parts.task.problems(step, parts.config.rollout.prompts_per_step, seed)
    return [everyones[i] for i in mine.prompts]


def _sampled(parts: Parts, problems: list[Problem], seed: int, rows: Tensor) -> Rollout:
    return parts.sampler.sample([p.prompt_ids for p in problems], seed=seed, rows=rows, asked=problems)


def _sent(parts: Parts, problems: list[Problem], rollout: Rollout) -> tuple[list[Pending | None], list[Lesson | None]]:
    portions = rollout.portions(parts.config.trainer.portions)
    pending: list[Pending | None] = [*parts.reference.submit(portions)] if parts.reference else [None] * len(portions)
    if parts.teachers is None:
        return pending, [None] * len(portions)
    return pending, [*parts.teachers.submit(portions, names_of(problems, parts.config))]


def _rewards(judgement: Judgement) -> Tensor:
    return torch.tensor([j.reward for j in judgement.judged], dtype=torch.float64)
