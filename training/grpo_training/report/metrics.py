"""Where a step's figures go: JSON lines and TensorBoard. The terminal is in `run.progress`.

A record is flat: names with a slash (`reward/mean`, `time/rollout`) and floats. On resume, records of steps that are
going to be done again are dropped, so that the file tells one undisturbed story.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

EVALUATIONS = "eval.jsonl"
Record = Mapping[str, float]


class Tracker(Protocol):
    """Takes the figures of each step."""

    def write(self, step: int, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`{"step": 3, "reward/mean": 0.25, ...}`, one line a step, on disk when the step is done."""

    def __init__(self, path: Path, *, first_step: int = 0) -> None:
        """first_step: records from it on are dropped from an existing file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_records(path) if record["step"] < first_step] if path.exists() else []
        draft = path.with_suffix(".partial")
        draft.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(draft, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **_finite(record)}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars for `tensorboard --logdir`."""

    def __init__(self, directory: Path, *, first_step: int = 0) -> None:
        # Takes seconds to import, and not every run wants it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=first_step or None)

    def write(self, step: int, record: Record) -> None:
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file. A last line that a kill cut in two is left out."""
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise
    return records


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null, at any depth."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
