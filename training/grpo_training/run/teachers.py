"""Who teaches: the teachers of a run opened and looked at, the teacher of each row, and what a step shows of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from grpo_training.config import ConfigError, DistillConfig, TrainConfig
from grpo_training.distributed import World
from grpo_training.models.loading import LoadedModel
from grpo_training.rollouts.teacher import Teachers
from grpo_training.run.portion import Portion
from grpo_training.run.teaching import differences
from grpo_training.tasks.task import Problem, Task

logger = logging.getLogger(__name__)

DEFAULT = "default"
_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


def open_teachers(
    config: TrainConfig, loaded: LoadedModel, fingerprints: Mapping[str, str] | None
) -> AbstractContextManager[Teachers | None]:
    """All teachers, ready. fingerprints: those that a resumed run began with."""
    options = config.distillation
    if options is None or not options.teachers:
        return nullcontext(None)
    if options.tail == "none" and options.kind in ("reverse", "skew_reverse"):
        logger.warning(
            "distillation.tail=none with kind=%s: the sum over the ids alone is lowered by moving the policy's mass out of "
            "them; watch distill/student_mass, or set tail=bucket",
            options.kind,
        )
    return Teachers(
        options,
        temperature=config.rollout.temperature,
        normalizer=config.loss.normalizer,
        vocab_size=loaded.model.config.get_text_config().vocab_size,
        fingerprints=fingerprints,
    )


def check_rows(task: Task, options: DistillConfig) -> None:
    """Raises ConfigError that names the first row whose teacher is not there."""
    if len(options.teachers) > 1:
        for entry, where in task.entries():
            teacher_of(entry, where, options)


def teacher_of(entry: Mapping[str, Any], where: str, options: DistillConfig) -> str:
    """The name of the teacher that a row is for."""
    if len(options.teachers) == 1:
        return next(iter(options.teachers))
    name = entry.get(options.column)
    if name is None and DEFAULT in options.teachers:
        return DEFAULT
    known = ", ".join(sorted(options.teachers))
    if name is None:
        raise ConfigError(
            f"{where} has no column {options.column} (distillation.column) that names its teacher; there are {known}. A "
            f"teacher called {DEFAULT} takes the rows that name none"
        )
    if name not in options.teachers:
        raise ConfigError(f"{where}: {options.column} is {name!r:.80}, and distillation.teachers has {known}")
    return str(name)


def names_of(problems: Sequence[Problem], config: TrainConfig) -> list[str]:
    """The teacher of each problem."""
    assert config.distillation is not None
    return [teacher_of(problem.entry, problem.where, config.distillation) for problem in problems]


def teacher_figures(
    portions: Sequence[Portion], names: Sequence[str], options: DistillConfig, world: World
) -> dict[str, float]:
    """How the differences at sampled tokens are spread over all processes, by teacher where there are several, and how many
    completions were left out."""
    each = [differences(portion) for portion in portions]
    untaught = torch.tensor([sum(portion.untaught for portion in portions)])
    figures = {"teacher/unscored": float(world.sum(untaught)[0])} | _spread(world.values(torch.cat(each)), "distill/d")
    if len(options.teachers) > 1 and len(each[0]):
        whose = torch.cat(
            [_of_tokens(p, n) for p, n in zip(portions, _by_portion(portions, names, options), strict=True)]
        )
        everyones, whose = world.values(torch.cat(each)), world.values(whose)
        for place, name in enumerate(options.teachers):
            mine = everyones[whose == place]
            figures[f"distill/{name}/d_mean"] = float(mine.mean()) if len(mine) else math.nan
    return figures


def _spread(values: Tensor, name: str) -> dict[str, float]:
    if not len(values):
        return {}
    points = values.quantile(torch.tensor(list(_QUANTILES.values()), dtype=values.dtype)).tolist()
    figures = {f"{name}_{label}": point for label, point in zip(_QUANTILES, points, strict=True)}
    return figures | {f"{name}_max": float(values.abs().max())}


def _by_portion(portions: Sequence[Portion], names: Sequence[str], options: DistillConfig) -> Iterable[Tensor]:
    """(S,) of each portion: the place of each completion's teacher among the teachers."""
    places = {name: place for place, name in enumerate(options.teachers)}
    whose = torch.tensor([places[name] for name in names])
    for of in whose.chunk(len(portions)):
        yield of.repeat_interleave(portions[0].rollout.group_size)


def _of_tokens(portion: Portion, whose: Tensor) -> Tensor:
    return whose.to(portion.mask.device)[:, None].expand(portion.mask.shape)[portion.mask]
