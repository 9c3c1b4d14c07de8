"""One run: full batch, no weight decay, one record every few epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from grpo_training.collapse import CollapseMonitor
from grpo_training.orthograd import OrthoGrad
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from .experiments import Experiment
from .losses import loss_terms, observe

Record = dict[str, Any]


def run(experiment: Experiment, seed: int) -> Iterator[Record]:
    """Train and yield a record at epoch 0, then every `epochs / points` epochs, and after the last one.

    A record is of the network as it is after that many steps; the monitor's cosine and norm growth are of the step to come,
    which the last record does not have. The same seed on the same machine gives the same records.
    """
    task = experiment.build_task(seed)
    torch.manual_seed(seed)
    dtype = getattr(torch, experiment.dtype)
    model = mlp(task.inputs, experiment.width, task.classes, bias=experiment.task == "parity").to(dtype)
    optimizer = build_optimizer(experiment, model)
    inputs, test_inputs = task.train_inputs.to(dtype), task.test_inputs.to(dtype)
    loss_dtype = getattr(torch, experiment.loss_dtype)
    monitor = CollapseMonitor()
    every = max(experiment.epochs // experiment.points, 1)
    started = time.process_time()
    for epoch in range(experiment.epochs + 1):
        last = epoch == experiment.epochs
        logits = model(inputs)
        terms = loss_terms(experiment.loss, logits, task.train_targets, loss_dtype)
        optimizer.zero_grad()
        terms.mean().backward()
        watched = epoch % every == 0 or last
        record: Record = {"epoch": epoch}
        if watched:
            record |= {
                "loss": float(terms.detach().mean()),
                "train": accuracy(logits, task.train_targets),
                "test": accuracy(_forward(model, test_inputs), task.test_targets),
                "weight_norm": norm(model),
                "seconds": time.process_time() - started,
            }
            monitor.before_step(model.parameters())
        if not last:
            optimizer.step()
        if watched:
            if not last:
                monitor.after_step()
            yield record | observe(monitor, logits, terms)


def mlp(inputs: int, width: int, classes: int, *, bias: bool) -> nn.Sequential:
    """inputs -> width -> width -> classes, ReLUs between, torch's own initialisation.

    The paper's modular tasks have no bias: every weight is then a matrix, and scaling all of them scales the logits, which
    is the direction that naive loss minimisation takes. Its sparse parity has biases.
    """
    return nn.Sequential(
        nn.Linear(inputs, width, bias=bias),
        nn.ReLU(),
        nn.Linear(width, width, bias=bias),
        nn.ReLU(),
        nn.Linear(width, classes, bias=bias),
    )


def build_optimizer(experiment: Experiment, model: nn.Module) -> Optimizer:
    """AdamW without decay, or SGD with momentum; around it OrthoGrad, where the experiment has it."""
    base: Optimizer
    if experiment.optimizer == "sgd":
        base = SGD(model.parameters(), lr=experiment.lr, momentum=experiment.momentum)
    else:
        betas = (0.9, experiment.beta2)
        base = AdamW(model.parameters(), lr=experiment.lr, betas=betas, eps=experiment.eps, weight_decay=0.0)
    return OrthoGrad(base) if experiment.orthogonal else base


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of rows whose largest logit is the target's."""
    return float((logits.argmax(-1) == targets).float().mean())


def norm(model: nn.Module) -> float:
    """Of all weights as one vector."""
    return math.sqrt(sum(float(p.detach().double().square().sum()) for p in model.parameters()))


@torch.no_grad()
def _forward(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs)
