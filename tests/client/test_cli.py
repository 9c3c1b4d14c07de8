"""`grpo-client` as a user meets it, the network aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpo_client import ReferenceClient, ScoreRequest, cli
from typer.testing import CliRunner, Result

ROLLOUTS: list[Any] = [
    {"prompt": [1, 2], "completions": [[3, 4], []], "id": "a", "reward": 1.0},
    {"prompt": "ab", "completions": ["c"], "temperature": 0.5},
    {"messages": [{"role": "user", "content": "hi"}], "completions": ["yo", ""]},
    {"prompt": [5], "completions": [[6]]},
]


@pytest.fixture(autouse=True)
def wired(reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's client talks to the fake reference."""

    def connect(*args: Any, **options: Any) -> ReferenceClient:
        return ReferenceClient(*args, transport=httpx.MockTransport(reference), **options)

    monkeypatch.setattr(cli, "ReferenceClient", connect)


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    path = tmp_path / "rollouts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROLLOUTS)) + "\n")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def score(rollouts: Path, *more: object) -> tuple[Result, list[dict[str, Any]]]:
    output = rollouts.with_name("scores.jsonl")
    result = run("score", "--url", "http://x", "--input", rollouts, "--output", output, *more)
    return result, [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


@pytest.mark.parametrize("encoding", ["tensors", "json"])
def test_scores_every_line_in_order(rollouts: Path, scored, encoding: str) -> None:
    result, records = score(
        rollouts, "--temperature", 2, "--return", "entropy,rank", "--top-k", 1, "--encoding", encoding
    )
    assert result.exit_code == 0, result.output
    assert [r["line"] for r in records] == [1, 2, 3, 4]
    assert [r["temperature"] for r in records] == [2.0, 0.5, 2.0, 2.0]
    expected = scored(ScoreRequest.of([[1, 2]], [[[3, 4], []]], temperature=2.0)).logprobs.tolist()
    assert records[0]["logprobs"] == [expected, []]
    assert records[0]["id"] == "a"
    assert {"entropy", "rank", "top_ids", "top_logprobs", "status", "fingerprint", "normalizer"} <= records[0].keys()
    assert bytes(records[2]["prompt"]) == b"hi"
    assert [bytes(ids) for ids in records[2]["completions"]] == [b"yo", b""]


def test_broken_lines_are_named_and_the_rest_is_scored(rollouts: Path) -> None:
    lines = rollouts.read_text().splitlines()
    broken = ['{"prompt": [1], "completions": [[-1]]}', "{nope", "", "[]", '{"prompt": []}']
    rollouts.write_text("\n".join([lines[0], *broken, lines[1]]))
    result, records = score(rollouts)
    assert result.exit_code == 1
    assert [r["line"] for r in records] == [1, 7]
    for said in ("line 2: completions[0][0]", "line 3: not valid JSON", "line 5: must be a JSON object", "line 6: "):
        assert said in result.output
    assert "lines that could not be scored: 4" in result.output


def test_a_refused_line_does_not_stop_the_run(rollouts: Path, reference, refusal) -> None:
    reference.before = lambda request: refusal(413, "too long") if request.content.count(b'"ab"') else None
    result, records = score(rollouts)
    assert result.exit_code == 1
    assert "line 2: HTTP 413: too long" in result.output
    assert [r["line"] for r in records] == [1, 3, 4]


@pytest.mark.parametrize("torn", [0, 1, 30])
def test_resume_after_a_crash_gives_the_same_file(rollouts: Path, reference, torn: int) -> None:
    output = rollouts.with_name("scores.jsonl")
    score(rollouts)
    whole = output.read_bytes()
    third = whole.index(b'{"line":3')
    output.write_bytes(whole[: third + torn])
    reference.seen.clear()
    result, _ = score(rollouts, "--resume")
    assert result.exit_code == 0, result.output
    assert output.read_bytes() == whole
    assert len(reference.seen) == 2, "only what was missing is asked for"


def test_resume_does_not_mix_references(rollouts: Path, reference) -> None:
    output = rollouts.with_name("scores.jsonl")
    score(rollouts)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:2]))
    reference.fingerprint = "beef"
    result, records = score(rollouts, "--resume")
    assert result.exit_code == 1
    assert "error: " in result.output
    assert len(records) == 2


def test_an_output_file_that_is_there_is_not_touched_unasked(rollouts: Path, reference) -> None:
    output = rollouts.with_name("scores.jsonl")
    output.write_text("precious\n")
    for more in ([], ["--resume"]):
        result = run("score", "-u", "http://x", "-i", rollouts, "-o", output, *more)
        assert result.exit_code == 1
        assert "--overwrite" in result.output
        assert output.read_text() == "precious\n"
    assert reference.seen == []
    assert score(rollouts, "--overwrite")[0].exit_code == 0


def test_the_input_is_never_the_output(rollouts: Path) -> None:
    before = rollouts.read_bytes()
    result = run("score", "-u", "http://x", "-i", rollouts, "-o", rollouts, "--overwrite")
    assert result.exit_code == 1
    assert rollouts.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--temperature", 0], "temperature"),
        (["--normalizer", "sigmoid"], "stablemax"),
        (["--return", "logits"], "entropy"),
        (["--return", "hidden"], "hidden states go into no file"),
        (["--top-k", -1], "top_k"),
        (["--encoding", "xml"], "tensors"),
    ],
)
def test_options_are_checked_before_anything_happens(rollouts: Path, reference, more: list[object], said: str) -> None:
    result, _ = score(rollouts, *more)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert not rollouts.with_name("scores.jsonl").exists()
    assert reference.seen == []


def test_no_server(rollouts: Path, reference) -> None:
    def dead(request: httpx.Request) -> None:
        raise httpx.ConnectError("refused")

    reference.before = dead
    for result in (score(rollouts, "--max-wait", 0)[0], run("info", "-u", "http://x")):
        assert result.exit_code == 1
        assert "refused" in result.output
        assert "Traceback" not in result.output


def test_info() -> None:
    assert "f00d" in run("info", "--url", "http://x").output
    assert json.loads(run("info", "--url", "http://x", "--json").stdout)["max_length"] == 64


def test_wait() -> None:
    result = run("wait", "--url", "http://x", "--timeout", 5)
    assert result.exit_code == 0
    assert "ready: fake" in result.output


def test_wait_gives_up_by_the_option_that_it_has(reference, refusal) -> None:
    reference.before = lambda request: refusal(503, "not ready yet (reading the weights)", Retry_After="9")
    result = run("wait", "--url", "http://x", "--timeout", 5)
    assert result.exit_code == 1
    [failed] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert failed.startswith("error: gave up waiting for http://x to be ready after 1 try")
    assert "--timeout=5 s" in failed
    assert "reading the weights" in failed
    assert "max_wait" not in failed


@pytest.mark.parametrize("command", ["score", "info", "wait"])
def test_help_shows_an_example(command: str) -> None:
    assert f"grpo-client {command}" in run(command, "--help").output


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "-u", "localhost:8000"), ("wait", "-u", "http://u:s3cret@h"), ("probe", "localhost:1", "--against", "http://x"),
        ("probe", "http://x", "--against", "http://u:s3cret@h"), ("score", "-u", "ftp://s3cret@h"), ("score", "-u", ""),
        ("score", "-u", "http://x", "--temperature", "nan"), ("score", "-u", "http://x", "--return", "logits"),
        ("score", "-u", "http://x", "--in-flight", "0"), ("score", "-u", "http://x", "--max-wait", "-1"),
    ],
)  # fmt: skip
def test_what_cannot_be_ends_with_status_2_and_no_secret(rollouts: Path, reference, arguments: tuple[str, ...]) -> None:
    files = ("-i", rollouts, "-o", rollouts.with_name("out")) if arguments[0] == "score" else ()
    result = run(*arguments, *files)
    assert result.exit_code == 2, result.output
    assert "s3cret" not in result.output
    assert "Traceback" not in result.output
    assert reference.seen == []


def test_an_oracle_that_is_not_there_is_a_sentence(reference) -> None:
    result = run("probe", "http://x", "--against", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: http://127.0.0.1:9: ConnectError")
