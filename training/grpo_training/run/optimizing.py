"""The optimizer of a run and its learning rate, also of a run that goes on longer than it was meant to."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from grpo_training import orthograd
from grpo_training.config import TrainConfig
from grpo_training.models.loading import LoadedModel


def make_optimizer(config: TrainConfig, loaded: LoadedModel) -> torch.optim.Optimizer:
    """AdamW over the trained parameters, with OrthoGrad before each step where it is asked for."""
    options = config.optimizer
    ortho = options.orthograd
    optimizer = torch.optim.AdamW(
        orthograd.parameter_groups(loaded.model, skip_names=ortho.skip_names, skip_types=ortho.skip_types),
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
    if ortho.enabled:
        orthograd.attach(optimizer, granularity=ortho.granularity)
    return optimizer


def make_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """The configured schedule over the run's steps, after its warm-up."""
    options = config.optimizer
    # transformers' `constant` ignores the warm-up without a word.
    warmed = options.schedule == "constant" and options.warmup_steps > 0
    scheduler = get_scheduler(
        "constant_with_warmup" if warmed else options.schedule,
        optimizer,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=config.trainer.steps,
    )
    assert isinstance(scheduler, LambdaLR)
    return scheduler


def set_rate(optimizer: torch.optim.Optimizer, scheduler: LambdaLR) -> None:
    """Give the optimizer the rate that this schedule has at its step.

    A checkpoint holds the rate of the schedule that it was written under. With more steps than those it is another one: at
    the end of a cosine it was 0.
    """
    rates = [base * of(scheduler.last_epoch) for base, of in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
