"""The three tasks, each a finite table of which one part is trained on and the rest is asked for at the end.

Nothing here is sampled anew during training: every run is full batch, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TaskName = Literal["addition", "multiplication", "parity"]


@dataclass(frozen=True)
class Task:
    """Inputs (N, D) as floats, targets (N,) as class indices; `train` is fitted, `test` is never seen."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int

    @property
    def inputs(self) -> int:
        return self.train_inputs.shape[1]


def modular(name: Literal["addition", "multiplication"], modulus: int, fraction: float, seed: int) -> Task:
    """All pairs (a, b) with their sum or product modulo `modulus`; a pair is two one-hot vectors side by side."""
    first, second = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus)).unbind(1)
    targets = (first + second if name == "addition" else first * second) % modulus
    one_hot = torch.eye(modulus)
    return _split(torch.cat((one_hot[first], one_hot[second]), 1), targets, fraction, seed, modulus)


def sparse_parity(relevant: int, noise: int, samples: int, fraction: float, seed: int) -> Task:
    """Random bits, all different; the class is the parity of the first `relevant` ones, the rest says nothing."""
    bits = relevant + noise
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2, (2 * samples, bits), generator=generator).unique(dim=0)
    drawn = drawn[torch.randperm(len(drawn), generator=generator)][:samples]
    if len(drawn) < samples:
        raise ValueError(f"{bits} bits do not give {samples} different samples: take fewer samples or more bits")
    return _split(drawn.float(), drawn[:, :relevant].sum(1) % 2, fraction, seed, 2)


def _split(inputs: Tensor, targets: Tensor, fraction: float, seed: int, classes: int) -> Task:
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    train, test = order[: int(fraction * len(order))], order[int(fraction * len(order)) :]
    if not len(train) or not len(test):
        raise ValueError(f"a training fraction of {fraction} of {len(order)} rows leaves one side empty")
    return Task(inputs[train], targets[train], inputs[test], targets[test], classes)
