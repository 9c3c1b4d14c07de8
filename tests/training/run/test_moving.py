"""A reference that follows the policy: when it moves, what it is then, and what the KL says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from grpo_client import NotAuthorized
from grpo_training.config import TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from grpo_training.run.step import StepReport

MakeConfig = Callable[..., TrainConfig]


class Killed(Exception):
    pass


class KillAfter:
    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None: ...

    def evaluated(self, done: int, figures: dict[str, float]) -> None: ...

    def saved(self, path: Path) -> None: ...

    def stepped(self, step: int, report: StepReport) -> None:
        if step == self.step:
            raise Killed


def figures(output: Path, name: str) -> list[float]:
    return [record[name] for record in read_records(output / "metrics.jsonl")]


def test_the_policy_becomes_the_reference(
    make_config: MakeConfig, reference_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_ADMIN_KEY", "root")
    train(make_config(reference_server.url, reference={"sync_every": 2}, trainer={"steps": 4}))
    output = tmp_path / "run"
    assert reference_server.moves == [(str(output.resolve() / "reference" / "step-000002"), 0.0)]
    assert figures(output, "reference/version") == [0, 0, 1, 1]
    kl = figures(output, "kl")
    assert kl[1] > 1e-6
    assert kl[2] == pytest.approx(0.0, abs=1e-9)  # the policy is its reference again
    assert kl[3] > 1e-6


def test_a_share_of_the_policy_is_mixed_in(
    make_config: MakeConfig, reference_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_ADMIN_KEY", "root")
    train(make_config(reference_server.url, reference={"sync_every": 1, "mixup_alpha": 0.25}, trainer={"steps": 3}))
    assert [decay for _, decay in reference_server.moves] == [0.75, 0.75]
    assert figures(tmp_path / "run", "reference/version") == [0, 1, 2]


def test_the_policy_is_uploaded_to_a_server_elsewhere(
    make_config: MakeConfig, reference_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_ADMIN_KEY", "root")
    train(make_config(reference_server.url, reference={"sync_every": 2, "sync_by": "http"}, trainer={"steps": 3}))
    assert reference_server.moves == [("upload:1", 0.0)]
    assert {"config.json", "model.safetensors"} <= reference_server.uploads.sizes.keys()
    assert figures(tmp_path / "run", "kl")[2] == pytest.approx(0.0, abs=1e-9)


def test_a_run_that_was_killed_behind_a_move_does_not_move_twice(
    make_config: MakeConfig, reference_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_ADMIN_KEY", "root")

    def config() -> TrainConfig:
        moves = {"sync_every": 2, "mixup_alpha": 0.5}
        return make_config(reference_server.url, reference=moves, trainer={"steps": 4, "checkpoint_every": 2})

    with pytest.raises(Killed):
        train(config(), observer=KillAfter(2))
    assert len(reference_server.moves) == 1
    train(config(), resume=True)
    assert len(reference_server.moves) == 1
    assert figures(tmp_path / "run", "reference/version") == [0, 0, 1, 1]


def test_without_the_admin_key_the_run_ends(
    make_config: MakeConfig, reference_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPO_ADMIN_KEY", raising=False)
    with pytest.raises(NotAuthorized):
        train(make_config(reference_server.url, reference={"sync_every": 1}, trainer={"steps": 2}))


def test_moves_are_at_checkpoints(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"must divide reference\.sync_every=3"):
        make_config("http://127.0.0.1:9", reference={"sync_every": 3}, trainer={"checkpoint_every": 2})
