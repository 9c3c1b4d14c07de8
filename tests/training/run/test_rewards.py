"""A run with several reward functions: what counts is their weighted sum, and each has its figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grpo_training.cli import app
from grpo_training.config import RewardError, TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from typer.testing import CliRunner

MakeConfig = Callable[..., TrainConfig]
SOURCE = """
import asyncio, itertools
calls = itertools.count()
def digits(completions, **_): return [sum(c.isdigit() for c in text) / 6 for text in completions]
def fails(answer, entry):
    if next(calls) % 4 == 0: raise ValueError("every fourth")
    return 1.0
async def slow(completion):
    await asyncio.sleep(0.02)
    return float(len(completion) % 2)
"""


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"three_rewards_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    return {
        "digits": f"{name}:digits",
        "fails": {"function": f"{name}:fails", "weight": 0.5},
        "slow": {"function": f"{name}:slow", "weight": 0.25},
    }


def several(make_config: MakeConfig, url: str, **fields: Any) -> TrainConfig:
    config = make_config(url, trainer={"steps": 2})
    values = config.task.model_dump(exclude={"reward", "rewards"}) | {"answer_pattern": None, **fields}
    return config.model_copy(update={"task": type(config.task).model_validate(values)})


def test_three_functions_one_failing_one_slow(make_config: MakeConfig, reference_server: Any, rewards: Any) -> None:
    config = several(make_config, reference_server.url, rewards=rewards, on_error="abstain")
    train(config)
    for record in read_records(config.trainer.output / "metrics.jsonl"):
        assert record["reward/errors"] == record["reward/fails/errors"] == record["reward/fails/abstained"] == 4
        assert record["reward/digits/errors"] == record["reward/slow/errors"] == 0
        assert (record["reward/fails/mean"], record["reward/fails/std"]) == (1.0, 0.0)
        assert record["time/reward/slow_s"] >= 0.02
        assert record["reward/unmeasured"] == 0
        # 12 of 16 have the second part.
        expected = record["reward/digits/mean"] + 0.5 * 12 / 16 + 0.25 * record["reward/slow/mean"]
        assert record["reward/mean"] == pytest.approx(expected)


def test_the_default_rule_ends_the_run_and_says_why(
    make_config: MakeConfig, reference_server: Any, rewards: Any, tmp_path: Path
) -> None:
    config = several(make_config, reference_server.url, rewards=rewards)
    with pytest.raises(RewardError, match=r":fails failed for entry \d+ of basic_arithmetic: ValueError: every fourth"):
        train(config)
    path = tmp_path / "run.yaml"
    path.write_text(config.model_dump_json())
    ended = CliRunner().invoke(app, ["--config", str(path), "--overwrite"])
    assert ended.exit_code == 1
    assert "cannot reward" in ended.output
    assert "every fourth" in ended.output
    assert "Traceback" not in ended.output


def test_a_run_with_several_rewards_goes_on_from_its_config_json(
    make_config: MakeConfig, reference_server: Any, rewards: Any
) -> None:
    config = several(make_config, reference_server.url, rewards=rewards, on_error="abstain")
    train(config.model_copy(update={"trainer": config.trainer.model_copy(update={"checkpoint_every": 1})}))
    again = ["--config", str(config.trainer.output / "config.json"), "--resume", "--set", "trainer.steps=3"]
    ended = CliRunner().invoke(app, again)
    assert ended.exit_code == 0, ended.output
    assert [record["step"] for record in read_records(config.trainer.output / "metrics.jsonl")] == [0, 1, 2]
