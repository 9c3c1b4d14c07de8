"""Runs on disk: one JSON-lines file for each experiment and seed, and the questions one asks of them.

The first line is the settings, each further line a record of `train.run`. A file is complete when its last record has
the settings' number of epochs; an interrupted run is simply done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from .experiments import Experiment
from .train import Record

DIGITS = 5


@dataclass(frozen=True)
class Run:
    """A run read back."""

    settings: dict[str, Any]
    records: list[Record]

    @property
    def name(self) -> str:
        return self.settings["name"]

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def complete(self) -> bool:
        return bool(self.records) and self.records[-1]["epoch"] == self.settings["epochs"]

    def column(self, figure: str) -> tuple[list[int], list[float]]:
        """Epochs and values, where the figure was measured."""
        kept = [r for r in self.records if figure in r]
        return [r["epoch"] for r in kept], [r[figure] for r in kept]

    def at(self, epoch: int, figure: str = "test") -> float:
        """The figure at the last record not after that epoch."""
        return [r for r in self.records if r["epoch"] <= epoch][-1][figure]

    def first(self, reached: float, figure: str = "test") -> int | None:
        """The first recorded epoch at which the figure is at least that; None where it never is."""
        return next((r["epoch"] for r in self.records if r.get(figure, -1.0) >= reached), None)


def path_of(directory: Path, experiment: Experiment, seed: int) -> Path:
    return directory / f"{experiment.name}-seed{seed}.jsonl"


@contextmanager
def writing(path: Path, experiment: Experiment, seed: int) -> Iterator[TextIO]:
    """Open the file of a run and write its first line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        write(file, {**asdict(experiment), "seed": seed, "torch": torch.__version__})
        yield file


def write(file: TextIO, line: dict[str, Any]) -> None:
    """One line, floats to five digits: enough to plot, small enough to commit."""
    rounded = {k: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for k, v in line.items()}
    file.write(json.dumps(rounded) + "\n")
    file.flush()


def read(path: Path) -> Run:
    settings, *records = [json.loads(line) for line in path.read_text().splitlines()]
    return Run(settings, records)


def load(directory: Path) -> list[Run]:
    """Every complete run of a directory, by name and seed."""
    runs = [read(path) for path in directory.glob("*.jsonl")]
    return sorted((run for run in runs if run.complete), key=lambda run: (run.name, run.seed))


def named(runs: Iterable[Run], name: str) -> list[Run]:
    return [run for run in runs if run.name == name]
