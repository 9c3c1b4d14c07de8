"""What a step works with, and the clock that says where its time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from grpo_training.config import TrainConfig
from grpo_training.distributed import World
from grpo_training.models.loading import LoadedModel
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.reference import Reference
from grpo_training.rollouts.sampling import Sampler
from grpo_training.rollouts.stored_teacher import StoredTeacher
from grpo_training.rollouts.teacher import Teachers
from grpo_training.run.endings import Endings
from grpo_training.run.watch import CollapseWatch
from grpo_training.tasks.task import Task


@dataclass(frozen=True)
class Parts:
    """What a step works with. reference is None when beta is 0: then nothing is asked of the server. teachers is None
    without `distillation.teachers`, and targets without `distillation.targets`."""

    config: TrainConfig
    loaded: LoadedModel
    policy: Policy
    task: Task
    sampler: Sampler
    watch: CollapseWatch
    endings: Endings
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    reference: Reference | None
    teachers: Teachers | None
    targets: StoredTeacher | None
    world: World


class Clock:
    """Seconds spent in each named part of a step; those of a part within another are its own alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started, before, self._within = time.perf_counter(), self._within, 0.0
        yield
        took = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took - self._within
        self._within = before + took


def step_seed(seed: int, step: int) -> int:
    """A seed for this step alone, unrelated to its neighbours'."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
