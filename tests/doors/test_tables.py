"""Questions from parquet, arrow and the directories of `datasets`, which comes with TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
from grpo_training.config import ConfigError, TaskConfig  # noqa: E402
from grpo_training.tasks.task import Task  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

ROWS = {
    "prompt": [f"{i}+1=" for i in range(4)],
    "answer": [str(i + 1) for i in range(4)],
    "level": [3, 1, 2, 0],
}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The same rows in every form, as fields of `task`."""
    table = datasets.Dataset.from_dict(ROWS)
    table.to_parquet(str(tmp_path / "data.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "folder").mkdir()
    table.to_parquet(str(tmp_path / "folder" / "train-00000.parquet"))
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    arrow.rename(tmp_path / "data.arrow")
    table.save_to_disk(str(tmp_path / "saved"))
    return {
        "parquet": {"file": tmp_path / "data.parquet"},
        "arrow": {"file": tmp_path / "data.arrow"},
        "saved": {"dataset": str(tmp_path / "saved")},
        "splits": {"dataset": str(tmp_path / "splits")},
        "folder": {"dataset": str(tmp_path / "folder")},
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_every_form_asks_the_same(places: dict[str, dict[str, Any]], tokenizer: Any) -> None:
    fingerprints = set()
    for fields in places.values():
        task = Task(TaskConfig.model_validate({**fields, "shuffle": False}), tokenizer)
        problems = task.problems(0, 4, 0)
        assert [p.prompt_text for p in problems] == ROWS["prompt"]
        assert [p.entry["level"] for p in problems] == ROWS["level"]
        assert task.judge(problems[2], "3").reward == 1.0
        fingerprints.add(task.fingerprint)
    assert len(fingerprints) == 1


def test_a_fingerprint_is_of_the_rows(places: dict[str, dict[str, Any]], tokenizer: Any, tmp_path: Path) -> None:
    before = Task(TaskConfig.model_validate(places["saved"]), tokenizer).fingerprint
    datasets.Dataset.from_dict(ROWS | {"answer": ["9", "9", "9", "9"]}).save_to_disk(str(tmp_path / "other"))
    assert Task(TaskConfig(dataset=str(tmp_path / "other")), tokenizer).fingerprint != before


def test_a_split_of_its_own(places: dict[str, dict[str, Any]], tokenizer: Any) -> None:
    assert len(Task(TaskConfig.model_validate({**places["splits"], "split": "test"}), tokenizer)) == 1
    with pytest.raises(ConfigError, match=r"task\.split: .* has no split 'dev', but train, test"):
        Task(TaskConfig.model_validate({**places["splits"], "split": "dev"}), tokenizer)


def test_what_cannot_be_read_is_named(places: dict[str, dict[str, Any]], tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.file: no file at .*missing\.parquet"):
        Task(TaskConfig(file=tmp_path / "missing.parquet"), tokenizer)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(ConfigError, match=r"task\.file: datasets cannot read"):
        Task(TaskConfig(file=tmp_path / "broken.parquet"), tokenizer)
    with pytest.raises(ConfigError, match=r"task\.dataset: datasets cannot read nobody/nothing"):
        Task(TaskConfig(dataset="nobody/nothing"), tokenizer)
    datasets.Dataset.from_dict({"prompt": ["a", ""], "answer": ["1", "2"]}).to_parquet(str(tmp_path / "bad.parquet"))
    with pytest.raises(ConfigError, match=r"task\.file: .*bad\.parquet row 1: prompt is empty"):
        Task(TaskConfig(file=tmp_path / "bad.parquet"), tokenizer)
