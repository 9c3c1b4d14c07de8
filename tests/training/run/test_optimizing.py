"""The learning rate of every step: as the schedule's formula has it, also of a run that is resumed with more steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from grpo_training.config import TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from grpo_training.run.optimizing import make_scheduler, set_rate

MakeConfig = Callable[..., TrainConfig]
LR = 1e-3


def rate(schedule: str, step: int, steps: int, warmup: int) -> float:
    """transformers' formulas."""
    if step < warmup:
        return LR * step / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return LR * {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[schedule]


def rates(output: Path) -> list[float]:
    return [record["policy/lr"] for record in read_records(output / "metrics.jsonl")]


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_more_steps_go_on_at_the_longer_schedules_rate(make_config: MakeConfig, schedule: str, warmup: int) -> None:
    def config(steps: int) -> TrainConfig:
        return make_config(
            loss={"beta": 0.0},
            rollout={"prompts_per_step": 2, "group_size": 2, "max_new_tokens": 3},
            optimizer={"lr": LR, "schedule": schedule, "warmup_steps": warmup},
            trainer={"steps": steps, "checkpoint_every": 3},
        )

    train(config(3))
    train(config(6), resume=True)
    found = rates(config(6).trainer.output)
    assert found[:3] == pytest.approx([rate(schedule, n, 3, warmup) for n in range(3)])
    assert found[3:] == pytest.approx([rate(schedule, n, 6, warmup) for n in range(3, 6)])
    assert all(r > 0 for r in found[3:])


def test_at_the_same_length_the_rate_is_the_saved_one_to_the_bit(make_config: MakeConfig) -> None:
    config = make_config(optimizer={"lr": LR, "schedule": "cosine", "warmup_steps": 2}, trainer={"steps": 9})
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": LR}])
    scheduler = make_scheduler(config, optimizer)
    for _ in range(9):
        before = optimizer.param_groups[0]["lr"]
        set_rate(optimizer, scheduler)
        assert optimizer.param_groups[0]["lr"] == before
        assert scheduler.get_last_lr() == [before]
        optimizer.step()
        scheduler.step()
