"""`grpo-train` and the demo as commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from grpo_training import cli, demo
from grpo_training.config import TrainConfig
from typer.testing import CliRunner

Make = Callable[..., TrainConfig]


@pytest.fixture
def config_file(make_config: Make, tmp_path: Path) -> Path:
    config = make_config(reference={"max_wait": 1}, trainer={"steps": 2, "checkpoint_every": 1})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_a_run_and_its_resume(config_file: Path, reference_server, tmp_path: Path) -> None:
    here = ["--config", config_file, "--reference-url", reference_server.url, "--output", tmp_path / "out"]
    code, shown = run(*here, "--seed", 5)
    assert code == 0, shown
    assert "step    2" in shown
    assert "report.html" in shown
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["seed"], summary["steps"]) == (5, 2)
    assert run(*here, "--seed", 5)[0] == 2  # would overwrite
    code, shown = run(*here, "--seed", 5, "--resume", "--steps", 3)
    assert code == 0, shown
    assert "going on at step 2" in shown


def test_mistakes_end_with_status_2(config_file: Path) -> None:
    code, shown = run("--config", config_file, "--set", "optimizer.lrr=1")
    assert code == 2
    assert "did you mean lr?" in shown
    assert run("--config", "missing.yaml")[0] == 2


def test_a_reference_that_stays_away_ends_with_status_1(config_file: Path) -> None:
    code, shown = run("--config", config_file, "--set", "reference.max_wait=0")
    assert code == 1
    assert "the reference stayed away: http://127.0.0.1:9" in shown
    assert "--resume" not in shown  # there is nothing to go on from


def test_nobody_waits_in_silence(config_file: Path, tmp_path: Path) -> None:
    """After the first failure: who, why, and for how long it goes on; and at the end which field that was."""
    command = [sys.executable, "-m", "grpo_training", "--config", str(config_file), "--set", "reference.max_wait=1.5"]
    environment = os.environ | {"COLUMNS": "400"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    [waiting] = [line for line in lines if "trying again" in line]
    assert "http://127.0.0.1:9: ConnectError" in waiting
    assert re.search(r"trying again for up to [12] s", waiting)
    assert lines[-1].startswith("the reference stayed away for reference.max_wait=1.5 s: gave up waiting for")
    assert "past reference.max_wait=1.5 s" in lines[-1]
    assert lines[-1].endswith("Connection refused")


def test_a_rollout_server_that_stays_away_ends_with_status_1(config_file: Path) -> None:
    away = ["backend=openai", "base_url=http://127.0.0.1:9", "model=m", "max_wait=0"]
    code, shown = run("--config", config_file, *(word for field in away for word in ("--set", f"rollout.{field}")))
    assert code == 1
    assert "cannot sample: the rollout server failed: http://127.0.0.1:9" in shown


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- 1\n", "must hold sections"),
        ("", "is empty"),
        ("a: [1\n", "is not valid YAML, line 2"),
        ("task:\n\tname: x\n", "indent with spaces"),
        ("task: {name: x, name: y}\n", "the key name is there twice"),
        ("task: {name: basic_arithmetic}\nmodle: {name: x}\n", "did you mean model?"),
    ],
)
def test_broken_configurations_end_with_one_sentence_and_status_2(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    result = CliRunner().invoke(cli.app, ["--config", str(path)])
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("cannot start: ")
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--reference-url", "localhost:8009"], "did you mean http://localhost:8009?"),
        (["--set", "task.template='{question"], "--set task.template: the value is not valid YAML"),
        (["--set", "model.name=./nope"], "there is no directory ./nope"),
        (["--set", "model.device=gpu"], "model.device"),
        (["--set", "model.device=cuda:77"], "model.device"),
        (["--output", "/proc/nowhere/run"], "trainer.output: cannot write into /proc/nowhere/run"),
    ],
)
def test_impossible_settings_end_with_one_sentence_and_status_2(
    config_file: Path, arguments: list[str], says: str
) -> None:
    result = CliRunner().invoke(cli.app, ["--config", str(config_file), *arguments])
    assert result.exit_code == 2, result.output
    assert says in result.stderr.splitlines()[-1]


def test_what_is_said_of_a_wrong_key_or_address(config_file: Path, reference_server) -> None:
    """It names the field, and speaks of --resume only where there is a checkpoint."""
    here = ["--config", config_file, "--reference-url", reference_server.url]
    reference_server.refuses = 401
    code, shown = run(*here)
    assert code == 1
    assert (
        f"the reference {reference_server.url} refused the API key (reference.api_key, or GRPO_API_KEY): HTTP 401"
        in shown
    )
    assert "--resume" not in shown
    reference_server.refuses = 404
    code, shown = run(*here)
    assert code == 1
    assert f"what answers at {reference_server.url} (reference.urls) is no grpo-server: HTTP 404" in shown
    reference_server.refuses = None
    assert run(*here)[0] == 0
    reference_server.refuses = 401
    code, shown = run(*here, "--resume", "--steps", 3)
    assert code == 1
    assert "checkpoints/step-000002): HTTP 401" in shown


def test_a_full_disk_leaves_the_last_checkpoint(config_file: Path, reference_server, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the full disk: the model does not fit, the metrics do."""
    here = ["--config", str(config_file), "--reference-url", reference_server.url, "--output", str(tmp_path / "out")]
    assert run(*here)[0] == 0
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    limited += "from grpo_training.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", limited, *here, "--resume", "--steps", "4"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("cannot write (--resume goes on from")
    assert last.endswith("File too large")
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000002"]
    assert run(*here, "--resume", "--steps", 4)[0] == 0


def test_a_checkpoint_of_other_settings_ends_with_status_1(config_file: Path, reference_server) -> None:
    here = ["--config", config_file, "--reference-url", reference_server.url]
    assert run(*here)[0] == 0
    code, shown = run(*here, "--resume", "--seed", 9)
    assert code == 1
    assert "trainer.seed" in shown


def test_the_demo_starts_a_server_trains_and_stops_it(config_file: Path, tmp_path: Path) -> None:
    """The whole of `make demo` on the tiny model, with a real server process."""
    output = tmp_path / "demo"
    result = CliRunner().invoke(
        demo.app, ["--output", str(output), "--config", str(config_file), "--steps", "2"], env={"COLUMNS": "160"}
    )
    assert result.exit_code == 0, result.output
    assert "The capital of France is Paris." in result.output
    assert json.loads((output / "summary.json").read_text())["steps"] == 2
    assert "ends with status 0" in (output / "server.log").read_text()


def test_the_demo_says_why_its_server_did_not_start(config_file: Path, tmp_path: Path, make_config: Make) -> None:
    config = make_config(model={"name": str(tmp_path / "nowhere")})
    config_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    result = CliRunner().invoke(demo.app, ["--output", str(tmp_path / "demo"), "--config", str(config_file)])
    assert result.exit_code == 1
    assert "did not become ready" in result.output
