"""`grpo-train` killed with SIGKILL at its worst moments and resumed: the run that nobody disturbed, and the same data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from grpo_training.config import CheckpointError, TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from safetensors.torch import load_file

MakeConfig = Callable[..., TrainConfig]

# The process kills itself ahead of (or right after) the n-th rename onto a name, or with half a line of metrics written.
_DRIVER = """
import os, signal, sys
from grpo_training import cli
from grpo_training.report import metrics
name, count, after = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after"
replace, write = os.replace, metrics.JsonLines.write

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def renamed(source, target):
    global count
    count -= os.path.basename(target) == name
    if count == 0 and not after:
        die()
    replace(source, target)
    if count == 0:
        die()

def written(self, step, record):
    if name == "half a line" and step == count:
        self._file.write('{"step": %d, "rew' % step)
        self._file.flush()
        die()
    write(self, step, record)

os.replace, metrics.JsonLines.write = renamed, written
cli.app(sys.argv[4:])
"""


def learned(output: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in record.items() if not k.startswith("time/") and k != "reference/latency_s"}
        for record in read_records(output / "metrics.jsonl")
    ]


@pytest.mark.parametrize(
    ("moment", "goes_on_at"),
    [
        (("step-000002", 1, "before"), 0),  # the first checkpoint is whole, and has no name yet
        (("step-000004", 1, "after"), 4),  # the second has its name, and the first is not removed yet
        (("half a line", 3, ""), 2),
        (("model", 1, "before"), 6),  # all steps are done, and the model is not there yet
    ],
)
def test_killed_and_resumed(
    make_config: MakeConfig, reference_server, tmp_path: Path, moment: tuple[str, int, str], goes_on_at: int
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": i + 1}) + "\n" for i in range(9)))

    def config(name: str) -> TrainConfig:
        output = {"steps": 6, "checkpoint_every": 2, "save_model": True, "output": str(tmp_path / name)}
        made = make_config(reference_server.url, model={"threads": 1}, trainer=output)
        return made.model_copy(update={"task": made.task.model_copy(update={"name": None, "kwargs": {}, "file": data})})

    train(config("calm"))
    (tmp_path / "killed.yaml").write_text(yaml.safe_dump(config("killed").model_dump(mode="json")))
    command = [sys.executable, "-c", _DRIVER, *map(str, moment), "--config", str(tmp_path / "killed.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == -signal.SIGKILL, ended.stderr

    steps: list[int] = []

    class Watch:
        def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None:
            steps.append(first_step)

        def stepped(self, step: int, report: object) -> None: ...

        def saved(self, path: Path) -> None: ...

        def evaluated(self, done: int, figures: dict[str, float]) -> None: ...

    if goes_on_at:
        content = data.read_text()
        data.write_text(content.replace("9", "8"))
        with pytest.raises(CheckpointError, match="the data has changed since the checkpoint was written: task"):
            train(config("killed"), resume=True)
        data.write_text(content)
    train(config("killed"), resume=True, observer=Watch())
    assert steps == [goes_on_at]
    assert learned(tmp_path / "killed") == learned(tmp_path / "calm")
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("killed", "calm"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-000006"]
