"""`grpo-client check` as a person and as a program meet it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpo_client.cli import app
from typer.testing import CliRunner


def write(path: Path, *, shift: int = 0, records: int = 40) -> Path:
    rng = np.random.default_rng(0)
    lines: list[str] = []
    for step in range(records):
        r = -rng.exponential(2, size=(2, 8))
        t = np.roll(r, shift, axis=1)
        record: dict[str, Any] = {
            "step": step,
            "temperature": 1.0,
            "prompt_ids": [1, 2],
            "completion_ids": rng.integers(3, 90, size=(2, 8)).tolist(),
            "policy_logprobs": t.tolist(),
            "ref_logprobs": r.tolist(),
        }
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_healthy_file_passes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(write(tmp_path / "samples.jsonl"))])
    assert result.exit_code == 0, result.output
    assert "40 groups, 80 completions, 640 tokens" in result.output
    assert "CHECK" not in result.output
    assert "not_the_sampler" in result.output


def test_a_sick_file_ends_with_status_1_and_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(write(tmp_path / "samples.jsonl", shift=1))])
    assert result.exit_code == 1
    assert "CHECK shifted" in result.output
    assert "what to do:" in result.output


def test_json_for_programs(tmp_path: Path) -> None:
    path = write(tmp_path / "samples.jsonl", shift=1)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "kl": 5.0 if i == 7 else 0.1}) + "\n" for i in range(20)) + '{"step": 2'
    )
    result = CliRunner().invoke(app, ["check", str(path), "--json"])
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["passed"] is False
    by_name = {f["name"]: f for f in told["findings"]}
    assert by_name["shifted"]["verdict"] == "check"
    assert by_name["kl_spike"]["steps"] == [7]
    assert by_name["explain"] == by_name["explain"] | {
        "verdict": "needs_data",
        "says": "needs the server's address (--url)",
    }
    assert told["findings"][0]["verdict"] == "check"


@pytest.mark.parametrize("content", [None, "", "[]\n", '{"completion_ids": [[1]], "policy_logprobs": [[0.1, 0.2]]}\n'])
def test_what_cannot_be_read_ends_with_status_2(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "samples.jsonl"
    if content is not None:
        path.write_text(content)
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code == 2
    assert "error:" in result.output


def test_a_metrics_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "samples.jsonl")
    result = CliRunner().invoke(app, ["check", str(path), "--metrics", str(tmp_path / "no.jsonl")])
    assert result.exit_code == 2


def test_the_server_is_asked_for_the_reference_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def opened(url: list[str], **options: Any) -> nullcontext[None]:
        asked.append(options)
        return nullcontext()

    monkeypatch.setattr("grpo_client.commands.check.ReferenceClient", opened)
    path = str(write(tmp_path / "samples.jsonl"))
    assert CliRunner().invoke(app, ["check", path, "--url", "http://r", "--model", "b"]).exit_code == 0
    assert [one["model"] for one in asked] == ["b"]
    nowhere = CliRunner().invoke(app, ["check", path, "--model", "b"])
    assert (nowhere.exit_code, "with --url" in nowhere.stderr) == (2, True)
