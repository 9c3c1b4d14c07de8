"""Figures to experiment trackers, through accelerate's: wandb, trackio, mlflow, aim.

Each reads its own settings, keys included, from its environment (`WANDB_API_KEY`, `MLFLOW_TRACKING_URI`, ...).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_training.config import ConfigError
from grpo_training.report.metrics import Record


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker whose package is not installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError(f"trainer.trackers: {missing[0]} is not installed: pip install {missing[0]}")


class RemoteTracker:
    """One of accelerate's trackers."""

    def __init__(self, name: str, *, project: str, directory: Path, settings: Mapping[str, Any]) -> None:
        """directory: of the run, whose name is the run's. settings: of the run as JSON values, without secrets."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # by which a tracker knows that this is the process that tells; a run of several has it already
        kind = LOGGER_TYPE_TO_CLASS[name]
        offered = {"logging_dir": str(directory), "run_name": project, "experiment_name": project}
        if "experiment_name" in inspect.signature(kind).parameters:
            offered["run_name"] = directory.name
        wanted = {k: v for k, v in offered.items() if k in inspect.signature(kind).parameters}
        self._tracker = kind(**wanted)
        self._tracker.start()
        self._tracker.store_init_configuration(_flat(settings))

    def write(self, step: int, record: Record) -> None:
        self._tracker.log({name: value for name, value in record.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        self._tracker.finish()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`section.field`, with what is no number, text or None as text: what every tracker takes."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value if value is None or isinstance(value, bool | int | float | str) else str(value)
    return flat
