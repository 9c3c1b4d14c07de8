"""`grpo-client score --format parquet|arrow|axolotl`: what is written is what was scored, others read it, and it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grpo_client import ReferenceClient
from grpo_client.cli import app
from grpo_client.files import arrow
from grpo_client.files.axolotl import axolotl_columns
from grpo_client.protocol import CompletionScores, Status
from typer.testing import CliRunner

LINES = [
    {"prompt": [1, 2, 3], "completions": [[4, 5, 2], [6]], "id": {"a": 1}},
    {"prompt": [7], "completions": [[8, 9]], "temperature": 0.5},
    {"prompt": [5], "completions": [[]]},
    {"prompt": [4], "completions": [[1, 1, 1, 1]]},
]
K = 3


@pytest.fixture
def url(socket_server: Any, make_reference: Any) -> Iterator[str]:
    server = socket_server(0, make_reference())
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture
def run(url: str, tmp_path: Path) -> Callable[..., Any]:
    def go(source: Path | str, *more: str, output: str = "targets", code: int = 0, at: str = url, **how: Any) -> Any:
        asked = [
            "score",
            "-u",
            at,
            "-i",
            str(source),
            "-o",
            str(tmp_path / output),
            "--top-k",
            str(K),
            "--tail",
            *more,
        ]
        result = CliRunner().invoke(app, asked, **how)
        assert result.exit_code == code, result.output
        return result

    return go


def expected(url: str) -> list[Any]:
    """A row for each completion."""
    with ReferenceClient(url) as client:
        result = client.score(
            [line["prompt"] for line in LINES],
            [line["completions"] for line in LINES],
            temperature=[line.get("temperature", 1.0) for line in LINES],
            top_k=K,
            extras=["tail"],
        )
    return list(result)


def check(table: Any, url: str) -> None:
    rows = sorted(table.to_pylist(), key=lambda row: (row["line"], row["completion"]))
    prompts = [(n, line["prompt"], c) for n, line in enumerate(LINES, 1) for c in line["completions"]]
    assert [(row["line"], row["prompt_ids"], row["completion_ids"]) for row in rows] == prompts
    for row, scores in zip(rows, expected(url), strict=True):
        np.testing.assert_array_equal(np.array(row["logprobs"], np.float32), scores.logprobs)
        np.testing.assert_array_equal(np.array(row["tail_logprob"], np.float32), scores.extras["top_tail"])
        for name in ("top_ids", "top_logprobs"):
            values = np.array(row[name]).reshape(-1, K)
            np.testing.assert_array_equal(values.astype(scores.extras[name].dtype), scores.extras[name])
        assert row["status"] == "ok"
    about = json.loads(table.schema.metadata[b"grpo"])
    assert {name: about[name] for name in ("fingerprint", "normalizer", "top_k", "tail", "vocab_size")} == {
        "fingerprint": "f00d", "normalizer": "softmax", "top_k": K, "tail": True, "vocab_size": 1000,
    }  # fmt: skip


def test_parquet_is_read_by_pyarrow_and_datasets(run: Any, source: Path, tmp_path: Path, url: str) -> None:
    run(source, "--format", "parquet", "--rows", "2")
    files = sorted((tmp_path / "targets").iterdir())
    assert len(files) == 3  # two completions of the first line together, and so on
    check(pa.concat_tables([pq.read_table(path) for path in files]), url)
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=[str(path) for path in files], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 5
    assert np.shape(loaded[0]["top_ids"]) == (3, K)


def test_arrow_and_half_precision(run: Any, source: Path, tmp_path: Path, url: str) -> None:
    run(source, "--format", "arrow", output="a")
    with pa.memory_map(str(tmp_path / "a" / "part-00000.arrow")) as file:
        check(pa.ipc.open_file(file).read_all(), url)
    run(source, "--format", "parquet", "--top-dtype", "float16", output="h")
    schema = pq.read_schema(tmp_path / "h" / "part-00000.parquet")
    assert schema.field("top_logprobs").type.value_type.value_type == pa.float16()


def test_axolotl_has_its_names_and_each_row_where_its_token_is_predicted(
    run: Any, source: Path, tmp_path: Path, url: str
) -> None:
    run(source, "--format", "axolotl")
    table = pq.read_table(tmp_path / "targets" / "part-00000.parquet")
    for row, scores in zip(table.to_pylist(), expected(url), strict=True):
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        length, first = len(prompt) + len(completion), len(prompt) - 1
        assert row["input_ids"] == prompt + completion
        assert row["labels"] == [-100] * len(prompt) + completion
        assert row["attention_mask"] == [1] * length
        there = np.zeros((length, K), bool)
        there[first : length - 1] = True
        np.testing.assert_array_equal(np.reshape(row["target_mask"], (-1, K)), there)
        for name, values in (("target_token_ids", "top_ids"), ("target_logprobs", "top_logprobs")):
            found = np.reshape(row[name], (-1, K))[first : length - 1]
            np.testing.assert_array_equal(found.astype(scores.extras[values].dtype), scores.extras[values])


def test_axolotl_is_given_no_target_where_there_is_no_score() -> None:
    nan = np.nan
    best = {
        "top_ids": np.array([[4, 5], [-1, -1], [6, 7]]),
        "top_logprobs": np.array([[-1, -2], [nan, nan], [-1, -np.inf]]),
    }
    scores = CompletionScores(status=Status.OK, logprobs=np.array([-1, nan, -1], np.float32), extras=best)
    columns = axolotl_columns(np.array([1, 2]), np.array([4, 9, 6]), scores)
    assert columns["labels"].tolist() == [-100, -100, 4, -100, 6]
    assert columns["target_mask"].tolist() == [[0, 0], [1, 1], [0, 0], [1, 0], [0, 0]]
    assert np.isfinite(columns["target_logprobs"]).all()
    assert columns["target_token_ids"].shape == (5, 2)
    lost = axolotl_columns(np.array([1, 2]), np.array([4, 9, 6]), replace(scores, status=Status.NONFINITE))
    assert not lost["target_mask"].any()
    assert set(lost["labels"].tolist()) == {-100}


def test_a_resumed_run_has_no_row_twice(run: Any, source: Path, tmp_path: Path, url: str) -> None:
    lines = source.read_text().splitlines(keepends=True)
    lines[1] = "broken\n"
    source.write_text("".join(lines))
    run(source, "--format", "parquet", "--rows", "2", code=1)
    (tmp_path / "targets" / "part-00009.parquet.writing").write_bytes(b"what a crash left")
    source.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    run(source, "--format", "parquet", code=1)  # what is there is not overwritten unasked
    run(source, "--format", "parquet", "--resume")
    run(source, "--format", "parquet", "--resume")
    files = sorted((tmp_path / "targets").iterdir())
    assert all(path.suffix == ".parquet" for path in files)
    check(pa.concat_tables([pq.read_table(path) for path in files]), url)
    run(source, "--format", "parquet", "--temperature", "2", "--resume", code=1)
    run(source, "--format", "parquet", "--overwrite")
    assert len(list((tmp_path / "targets").iterdir())) == 1


@pytest.mark.parametrize("kind", ["parquet", "arrow", "directory", "datasets", "stdin"])
def test_every_input(run: Any, source: Path, tmp_path: Path, url: str, kind: str) -> None:
    rows = [{name: line.get(name) for name in ("prompt", "completions", "temperature")} for line in LINES]
    table = pa.Table.from_pylist(rows)
    path: Path | str = tmp_path / f"rollouts.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    elif kind == "directory":
        Path(path).mkdir()
        pq.write_table(table.slice(0, 3), Path(path) / "a.parquet")
        pq.write_table(table.slice(3), Path(path) / "b.parquet")
    elif kind == "datasets":
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(str(path))
    run("-" if kind == "stdin" else path, "--format", "parquet", input=source.read_bytes() if kind == "stdin" else None)
    check(pq.read_table(tmp_path / "targets" / "part-00000.parquet"), url)


def test_targets_are_rollouts_again(run: Any, source: Path, tmp_path: Path) -> None:
    run(source, "--format", "parquet")
    run(tmp_path / "targets", "--format", "parquet", output="again")
    first, again = (
        pq.read_table(tmp_path / name / "part-00000.parquet").select(["prompt_ids", "completion_ids", "logprobs"])
        for name in ("targets", "again")
    )
    assert first.equals(again)


def test_without_pyarrow_the_error_says_what_to_install(
    run: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name="pyarrow")

    monkeypatch.setattr(arrow.importlib, "import_module", missing)
    assert "pip install pyarrow" in " ".join(run(source, "--format", "parquet", code=1).output.split())


def test_targets_need_best_tokens(url: str, source: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["score", "-u", url, "-i", str(source), "-o", str(tmp_path / "t"), "--format", "parquet"]
    )
    assert result.exit_code == 1
    assert "--top-k" in result.output
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_the_files_say_which_tokenizer_the_ids_are_of(
    socket_server: Any, make_reference: Any, url: str, run: Any, source: Path, tmp_path: Path
) -> None:
    info = httpx.get(f"{url}/v1/reference").json() | {"tokenizer_fingerprint": "abc", "tokens": 99}
    tells = make_reference(
        before=lambda request: httpx.Response(200, json=info) if request.url.path == "/v1/reference" else None
    )
    server = socket_server(0, tells)
    run(source, "--format", "parquet", output="tells", at=f"http://127.0.0.1:{server.server_address[1]}")
    server.stop()
    run(source, "--format", "parquet", output="silent")
    told, silent = (
        json.loads(pq.read_schema(tmp_path / name / "part-00000.parquet").metadata[b"grpo"])
        for name in ("tells", "silent")
    )
    assert (told["tokenizer_fingerprint"], told["tokens"]) == ("abc", 99)
    assert not {"tokenizer_fingerprint", "tokens"} & silent.keys()
