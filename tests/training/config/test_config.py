"""Configuration: YAML, overrides, and errors that say what was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grpo_training.config import ConfigError, TrainConfig, load_config
from pydantic import BaseModel, ValidationError

ROOT = Path(__file__).resolve().parents[3]
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
        ("task.file=x.jsonl", "give one of name"),
        ("trainer.steps", "write section.field=value"),
        ("trainer.steps.more=1", "trainer.steps"),
    ],
)
def test_what_is_wrong_is_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        load_config(EXAMPLE, ["trainer.steps=3", override] if override.count(".") > 1 else [override])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty: it must hold sections"),
        (b"# nothing\n", "is empty"),
        (b"- 1\n", "must hold sections .* not a list"),
        (b"just words\n", "not a str"),
        (b"a: [1\n", "is not valid YAML, line 2, column 1: expected ',' or ']'"),
        (b"trainer:\n\tsteps: 1\n", "line 2, column 1: .*indent with spaces"),
        (b"task: {name: a}\ntrainer: {steps: 1}\ntask: {name: b}\n", "line 3, column 1: the key task is there twice"),
        (b"trainer:\n  steps: 1\n  steps: 2\n", "line 3, column 3: the key steps is there twice"),
        (b"a: 1\n---\nb: 1\n", "not valid YAML, line 2"),
        (b"task: {name: *nowhere}\n", "found undefined alias$"),
        (b"task: !!python/object:os.system {}\n", "could not determine a constructor for the tag$"),
        (b"trainer: {seed: 2024-99-99}\n", "not valid YAML: ValueError"),
        (b"[" * 5000, "not valid YAML: RecursionError"),
        (b"a: \x00\n", "a character is not allowed, position 3"),
        (b"task: {name: \xe9}\n", "is not UTF-8: byte 13 is 0xe9"),
        ("task: {name: basic}\n".encode("utf-16"), "is not UTF-8"),
        (b"1: 2\ntask: {name: a}\n", "1: "),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_config(path)


def test_paths_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file at"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read as a configuration file: Is a directory"):
        load_config(tmp_path)


def test_a_byte_order_mark_and_headings_without_fields(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("\ufefftask: {name: basic_arithmetic}\noptimizer:\n  # lr: 1\nlora:\n", encoding="utf-8")
    config = load_config(path, ["optimizer.lr=3e-6"], values={"trainer.output": "a: b [c]"})
    assert config.optimizer.lr == 3e-6
    assert config.lora is None
    assert config.trainer.output == Path("a: b [c]")  # a value is no YAML


KEY = "sk5planted7secret"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["reference.urls=localhost:8009"], "reference.urls: Value error, must look like .*mean http://localhost:8009"),
        (["reference.urls=[]"], "reference.urls: Value error, is empty"),
        (["reference.urls=http://host:99999"], "must look like http://localhost:8000"),
        (["reference.urls=ftp://host"], "must look like http://localhost:8000, got 'ftp://host'"),
        ([f"reference.urls=http://me:{KEY}@host"], "must not hold a user or password"),
        ([f"reference.urls=me:{KEY}@host"], "must not hold a user or password"),
        ([f"reference.urls=http://host?key={KEY}"], "must end before the"),
        ([f'reference.api_key="{KEY}\\n{KEY}"'], "reference.api_key: Value error, api_key holds a line break"),
        ([f"reference.api_key=[{KEY}]"], "reference.api_key: Input should be a valid string"),
        ([f"reference.api_kye={KEY}"], "did you mean api_key"),
        ([f"reference.api_key:{KEY}"], "--set reference.api_key: write section.field=value"),
        ([f"reference.api_key={KEY}: {KEY}: x"], "--set reference.api_key: the value is not valid YAML"),
        ([f"rollout.api_key_env=x-{KEY}"], "is the name of an environment variable"),
        ([f"rollout.base_url=http://me:{KEY}@host"], "name its variable in api_key_env"),
    ],
)
def test_an_error_names_the_field_and_keeps_the_secret(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(EXAMPLE, overrides)
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in str(error)
        error = error.__cause__


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


SEVERAL = {"exact": "exact", "own": {"function": "rewards:own", "weight": 0.5}}


def test_one_reward_or_several() -> None:
    with pytest.raises(ConfigError, match="either reward"):
        load_config(EXAMPLE, values={"task.reward": "graded", "task.rewards": SEVERAL})


@pytest.mark.parametrize(
    "values",
    [
        {"task.reward": "exact", "task.rewards": SEVERAL},
        {"task.reward": "exact", "eval.tasks": {"other": {"name": "chain_sum", "rewards": SEVERAL}}},
        {"lora": {"r": 4}, "rollout.environment": "module:Class"},
        {"distillation": {"teachers": "http://teacher:1", "kind": "jsd"}},
    ],
    ids=["rewards", "eval", "lora", "distillation"],
)
def test_a_runs_config_json_is_read_again(tmp_path: Path, values: dict[str, object]) -> None:
    written = load_config(EXAMPLE, values=values).model_dump(mode="json")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(written))
    assert load_config(path).model_dump(mode="json") == written
