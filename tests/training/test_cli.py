"""`grpo-train` and the demo as commands."""

from __future__ import annotations

import json
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
    assert "--resume" in shown


def test_a_rollout_server_that_stays_away_ends_with_status_1(config_file: Path) -> None:
    away = ["backend=openai", "base_url=http://127.0.0.1:9", "model=m", "max_wait=0"]
    code, shown = run("--config", config_file, *(word for field in away for word in ("--set", f"rollout.{field}")))
    assert code == 1
    assert "cannot sample: the rollout server failed: http://127.0.0.1:9" in shown


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
    assert "Finished server process" in (output / "server.log").read_text()


def test_the_demo_says_why_its_server_did_not_start(config_file: Path, tmp_path: Path, make_config: Make) -> None:
    config = make_config(model={"name": str(tmp_path / "nowhere")})
    config_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    result = CliRunner().invoke(demo.app, ["--output", str(tmp_path / "demo"), "--config", str(config_file)])
    assert result.exit_code == 1
    assert "did not become ready" in result.output
