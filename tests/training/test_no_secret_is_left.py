"""A whole run with keys planted wherever one can be given: none is in its files, on stdout or on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from grpo_training.config import TrainConfig

from .completions_server import CompletionsServer
from .conftest import EOS

MakeConfig = Callable[..., TrainConfig]

IN_CONFIG = "planted-in-config-4f1c"
IN_COMMAND = "planted-in-command-9b2e"
IN_HEADER = "planted-in-header-77ad"
IN_ENVIRONMENT = {
    "GRPO_API_KEY": "planted-grpo-a3d0",
    "ROLLOUT_KEY": "planted-rollout-51fe",
    "HF_TOKEN": "planted-hub-0c9b",
    "WANDB_API_KEY": "planted-tracker-e826",
}
PLANTED = (IN_CONFIG, IN_COMMAND, IN_HEADER, *IN_ENVIRONMENT.values())


@pytest.fixture
def rollouts(tiny_path: Path) -> Iterator[CompletionsServer]:
    with CompletionsServer(tiny_path, frozenset({EOS})) as server:
        yield server


def grpo_train(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpo_training", "--config", str(path), "--verbose", *arguments]
    environment = os.environ | IN_ENVIRONMENT | {"OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def leaks(*places: Path | str) -> list[tuple[str, str]]:
    """Each planted secret and where it was found."""
    found: list[tuple[str, str]] = []
    for place in places:
        texts = {"output": place.encode()} if isinstance(place, str) else {}
        if isinstance(place, Path):
            texts = {str(file): file.read_bytes() for file in place.rglob("*") if file.is_file()}
            assert texts
        found += [(secret, name) for name, text in texts.items() for secret in PLANTED if secret.encode() in text]
    return found


def settings(make_config: MakeConfig, url: str, rollouts: CompletionsServer, command: list[str], path: Path) -> None:
    config = make_config(
        url,
        reference={"max_wait": 2},
        rollout={
            "backend": "openai",
            "base_url": rollouts.url,
            "model": "tiny",
            "api_key_env": "ROLLOUT_KEY",
            "sync_every": 1,
            "sync_command": command,
        },
        trainer={"steps": 1, "checkpoint_every": 1, "tensorboard": True, "save_model": True},
    )
    values = config.model_dump(mode="json")
    values["reference"]["api_key"] = IN_CONFIG
    values["rollout"]["sync_command"] = command  # as it was given
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def test_a_run_and_its_resume(
    make_config: MakeConfig, reference_server, rollouts: CompletionsServer, tmp_path: Path
) -> None:
    words = ["-H", f"Authorization: Bearer {IN_HEADER}", "--token", IN_COMMAND]
    path = tmp_path / "run.yaml"
    settings(make_config, reference_server.url, rollouts, [sys.executable, "-c", "", "{path}", *words], path)
    first = grpo_train(path)
    assert first.returncode == 0, first.stderr
    assert rollouts.authorizations[0] == f"Bearer {IN_ENVIRONMENT['ROLLOUT_KEY']}"
    assert leaks(tmp_path / "run", first.stdout, first.stderr) == []
    second = grpo_train(path, "--resume", "--steps", "2")
    assert second.returncode == 0, second.stderr
    assert leaks(tmp_path / "run", second.stdout, second.stderr) == []


def test_failures(make_config: MakeConfig, reference_server, rollouts: CompletionsServer, tmp_path: Path) -> None:
    """A command that says all it knows, a key that no header can carry, a URL with a password."""
    tells = "import os, sys; sys.exit(' '.join([*sys.argv, *map(str, os.environ.items())]))"
    command = [sys.executable, "-c", tells, "{path}", "--api-key", IN_COMMAND, f"Authorization: Bearer {IN_HEADER}"]
    path = tmp_path / "run.yaml"
    settings(make_config, reference_server.url, rollouts, command, path)
    for arguments, status, says in (
        ([], 1, "rollout.sync_command ended with status 1"),
        (["--set", f'reference.api_key="{IN_CONFIG}\\nx"'], 2, "api_key holds a line break"),
        (["--set", f"reference.api_kye={IN_CONFIG}"], 2, "did you mean api_key?"),
        (["--reference-url", f"http://me:{IN_CONFIG}@127.0.0.1:9"], 2, "must not hold a user or password"),
        (["--set", f"rollout.base_url=http://me:{IN_CONFIG}@127.0.0.1:9"], 2, "must not hold a user or password"),
    ):
        ended = grpo_train(path, *arguments)
        assert ended.returncode == status, ended.stderr
        assert says in ended.stderr
        assert "Traceback" not in ended.stderr
        assert leaks(ended.stdout, ended.stderr) == []
