"""Experiment trackers through accelerate's: what they are given, and a package that is not there."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from grpo_training.config import ConfigError, TrainConfig
from grpo_training.report.trackers import RemoteTracker
from grpo_training.run.loop import train

MakeConfig = Callable[..., TrainConfig]


class Wandb(ModuleType):
    """The part of wandb that accelerate's tracker calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.told: list[tuple[str, Any]] = []
        self.config = self

    def init(self, **kwargs: Any) -> Wandb:
        self.told.append(("init", kwargs))
        return self

    def update(self, values: dict[str, Any], **_: Any) -> None:
        self.told.append(("config", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.told.append(("log", (step, values)))

    def finish(self) -> None:
        self.told.append(("finish", None))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_package_that_is_not_there_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.trackers: aim is not installed: pip install aim"):
        train(make_config(trainer={"trackers": ["aim"]}))


def test_figures_that_are_numbers_and_settings_go_to_the_tracker(wandb: Wandb, tmp_path: Path) -> None:
    settings = {"loss": {"beta": 0.1}, "task": {"rewards": {}}, "reference": {"urls": ["http://a"], "api_key": None}}
    tracker = RemoteTracker("wandb", project="mine", directory=tmp_path / "run", settings=settings)
    tracker.write(3, {"kl": 0.5, "reward/mean": math.nan})
    tracker.close()
    (first, started), (_, config), (_, logged), (last, _) = wandb.told
    assert (first, last) == ("init", "finish")
    assert started["project"] == "mine"
    assert config == {"loss.beta": 0.1, "reference.urls": "['http://a']", "reference.api_key": None}
    assert logged == (3, {"kl": 0.5})


def test_a_run_writes_to_it(make_config: MakeConfig, wandb: Wandb) -> None:
    train(make_config(loss={"beta": 0.0}, trainer={"steps": 2, "trackers": ["wandb"]}))
    assert [told[0] for kind, told in wandb.told if kind == "log"] == [0, 1]
