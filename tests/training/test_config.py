"""Configuration: YAML, overrides, and errors that say what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpo_training.config import ConfigError, TrainConfig, load_config
from pydantic import BaseModel, ValidationError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "arithmetic.yaml"


def test_the_example_loads_and_overrides_apply() -> None:
    config = load_config(
        EXAMPLE, ["optimizer.lr=3e-6", "reference.urls=[http://a:1, http://b:2]", "task.kwargs.seed=7"]
    )
    assert config.optimizer.lr == 3e-6
    assert config.reference.urls == ("http://a:1", "http://b:2")
    assert config.task.kwargs["seed"] == 7
    assert config.loss.beta > 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: there is no such field; did you mean lr?"),
        ("optimiser.lr=1", "did you mean optimizer?"),
        ("optimizer.orthograd.granularty=row", "did you mean granularity?"),
        ("optimizer.lr=-1", "optimizer.lr: Input should be greater than 0"),
        ("loss.kind=ppo", "loss.kind: Input should be 'grpo'"),
        ("loss.top_entropy_quantile=0", "loss.top_entropy_quantile: Input should be greater than 0"),
        ("loss.rollout_correction=mask", "loss.rollout_correction: Input should be 'auto'"),
        ("loss.kl_in=rewards", "loss.kl_in: Input should be 'loss' or 'reward'"),
        ("eval.completions=2", "eval: Value error, completions above 1 are all the same at temperature 0"),
        ("eval.tasks.sums.tempalte=x", "eval.tasks.sums.tempalte: there is no such field; did you mean template?"),
        ("eval.tasks.a/b.name=basic_arithmetic", "becomes part of a metric's name"),
        ("collapse.warn_at=5", "collapse.warn_at: Input should be less than or equal to 1"),
        ("rollout.temperature=0", "rollout.temperature"),
        ("rollout.group_size=1", "rollout.group_size=1 leaves every advantage at 0"),
        ("trainer.gradient_accumulation=99", "must divide rollout.prompts_per_step"),
        ("task.file=x.jsonl", "give either name"),
        ("trainer.steps", "write section.field=value"),
        ("trainer.steps.more=1", "trainer.steps"),
    ],
)
def test_what_is_wrong_is_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        load_config(EXAMPLE, ["trainer.steps=3", override] if override.count(".") > 1 else [override])


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold sections"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")


def test_it_is_frozen() -> None:
    config = load_config(EXAMPLE)
    with pytest.raises(ValidationError):
        config.trainer.steps = 5


def sections(model: type[BaseModel], name: str = "") -> list[tuple[str, type[BaseModel]]]:
    found = [(name, model)]
    for field, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += sections(info.annotation, f"{name}.{field}".lstrip("."))
    return found


def test_every_field_is_explained_here_and_in_the_documentation() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for section, model in sections(TrainConfig)[1:]:
        for field, info in model.model_fields.items():
            assert info.description, f"{section}.{field} has no docstring"
            assert f"`{field}`" in page, f"docs/training.md does not speak of {section}.{field}"


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="set bias_corrected_kl=false, or kl_in=loss"):
        load_config(EXAMPLE, ["loss.kl_in=reward", "loss.bias_corrected_kl=true"])


SERVER = ["rollout.backend=openai", "rollout.base_url=http://host:1/v1/", "rollout.model=m"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (SERVER[:2], "rollout: Value error, backend=openai needs base_url"),
        (SERVER[1:2], "set backend=openai, or leave them out"),
        ([*SERVER, "rollout.base_url=host:1"], "rollout.base_url: Value error, must look like http://localhost:8000"),
        ([*SERVER, "rollout.base_url=http://u:p@host"], "name its variable in api_key_env"),
        ([*SERVER, "rollout.sync_every=2"], "sync_every and sync_command belong together"),
        ([*SERVER, "rollout.sync_every=2", "rollout.sync_command=[reload]"], "must have {path} in it"),
        ([*SERVER, "loss.normalizer=stablemax"], "set rollout.backend=policy"),
    ],
)
def test_a_rollout_server_is_told_whole(overrides: list[str], says: str) -> None:
    assert load_config(EXAMPLE, SERVER).rollout.base_url == "http://host:1"
    with pytest.raises(ConfigError, match=says):
        load_config(EXAMPLE, overrides)
