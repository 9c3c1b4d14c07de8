"""The table of experiments: what is trained, with which loss and optimizer, for how long.

The settings are those of the paper's published runs, where a CPU has the patience: at 40 % trained on, StableMax takes them
40 000 epochs, so here it gets 70 %, and so does the collapse-free loss, which in fp32 does what they do in fp64. Two habits
of theirs matter. Adam's eps is 1e-25, because with 1e-8 the tiny gradients near collapse are no longer normalised away;
only their orthogonal runs had torch's default betas and eps. And there is no weight decay anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from .losses import LossName
from .tasks import Task, TaskName, modular, sparse_parity


@dataclass(frozen=True)
class Experiment:
    """Everything that a run depends on, but the seed."""

    name: str
    task: TaskName
    loss: LossName = "softmax"
    orthogonal: bool = False
    """Project each gradient onto the plane orthogonal to its weights (OrthoGrad)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 0.01
    beta2: float = 0.99
    eps: float = 1e-25
    momentum: float = 0.8
    epochs: int = 500
    fraction: float = 0.4
    """Share of the table that is trained on."""
    modulus: int = 113
    width: int = 200
    noise: int = 30
    """Sparse parity: bits beside the three that count, of which it has 2000 samples."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the network."""
    loss_dtype: Literal["float32", "float64"] = "float32"
    points: int = 50
    """Records that a run writes."""

    def build_task(self, seed: int) -> Task:
        if self.task == "parity":
            return sparse_parity(3, self.noise, 2000, self.fraction, seed)
        return modular(self.task, self.modulus, self.fraction, seed)


ORTHOGONAL = MappingProxyType({"orthogonal": True, "beta2": 0.999, "eps": 1e-8})


def catalogue() -> dict[str, Experiment]:
    """Every experiment by name."""
    table = (*_arithmetic("addition"), _orthogonal_sgd(), *_arithmetic("multiplication"), *_parity())
    return {experiment.name: experiment for experiment in table}


def _arithmetic(task: Literal["addition", "multiplication"]) -> list[Experiment]:
    most: dict[str, Any] = {"task": task, "fraction": 0.7, "epochs": 4000, "points": 40}
    return [
        Experiment(f"{task}-plain", task, lr=0.005, epochs=500),
        Experiment(f"{task}-orthogonal", task, lr=0.01, epochs=300, points=60, **ORTHOGONAL),
        Experiment(f"{task}-70-plain", lr=2e-3, **most),
        Experiment(f"{task}-70-collapse-free", loss="collapse-free", lr=2e-3, **most),
        Experiment(f"{task}-70-stablemax", loss="stablemax", lr=0.01, beta2=0.999, **most | {"epochs": 2000}),
    ]


def _orthogonal_sgd() -> Experiment:
    """The published run without Adam: what it needs instead is a large step, StableMax and fp64."""
    double: dict[str, Any] = {"dtype": "float64", "loss_dtype": "float64"}
    name = "addition-orthogonal-sgd"
    return Experiment(name, "addition", "stablemax", orthogonal=True, optimizer="sgd", lr=10.0, epochs=500, **double)


def _parity() -> list[Experiment]:
    common: dict[str, Any] = {
        "task": "parity",
        "fraction": 0.5,
        "lr": 0.01,
        "beta2": 0.999,
        "eps": 1e-18,
        "epochs": 4000,
        "points": 40,
    }
    return [
        Experiment("parity-plain", **common),
        Experiment("parity-stablemax", loss="stablemax", **common),
        Experiment("parity-collapse-free", loss="collapse-free", **common),
        Experiment("parity-orthogonal", orthogonal=True, **common | {"eps": 1e-8}),
    ]
