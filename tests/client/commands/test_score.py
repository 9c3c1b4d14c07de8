"""`grpo-client score` and the files of the world: pipes, gzip, odd line ends; what --resume takes up and what it refuses."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpo_client import ReferenceClient, cli
from grpo_client.files.json_lines import NotReadable, numbered_lines
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


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "200"}, input=stdin)


def score(rollouts: Path, *more: object) -> tuple[Result, list[dict[str, Any]]]:
    output = rollouts.with_name("scores.jsonl")
    result = run("score", "--url", "http://x", "--input", rollouts, "--output", output, *more)
    return result, [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def records_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.split(b"\n") if line]


@pytest.fixture
def expected(rollouts: Path) -> list[dict[str, Any]]:
    """The records of a plain run."""
    _, records = score(rollouts)
    rollouts.with_name("scores.jsonl").unlink()
    return records


def test_from_a_pipe_and_to_a_pipe(rollouts: Path, expected) -> None:
    result = run("score", "-u", "http://x", "-i", "-", "-o", "-", stdin=rollouts.read_bytes())
    assert result.exit_code == 0, result.output
    assert records_of(result.stdout_bytes) == expected


def test_gzip_in_and_out_by_content_and_by_name(rollouts: Path, expected) -> None:
    packed = rollouts.with_name("no-suffix")
    packed.write_bytes(gzip.compress(rollouts.read_bytes()[:40]) + gzip.compress(rollouts.read_bytes()[40:]))
    output = rollouts.with_name("scores.jsonl.gz")
    result = run("score", "-u", "http://x", "-i", packed, "-o", output)
    assert result.exit_code == 0, result.output
    assert records_of(gzip.decompress(output.read_bytes())) == expected
    piped = run("score", "-u", "http://x", "-i", "-", "-o", "-", stdin=packed.read_bytes())
    assert records_of(piped.stdout_bytes) == expected


@pytest.mark.parametrize("cut", [None, 1, 30])
def test_resume_of_gzip_after_a_crash_gives_the_same_records(
    rollouts: Path, reference, expected, cut: int | None
) -> None:
    output = rollouts.with_name("scores.jsonl.gz")
    lines = [json.dumps(record).encode() + b"\n" for record in expected]
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:  # flushed line by line, as a run writes
        for line in lines[:3]:
            file.write(line)
            file.flush()
        end = len(packed.getvalue())
    output.write_bytes(packed.getvalue() if cut is None else packed.getvalue()[: end - cut])
    reference.seen.clear()
    result = run("score", "-u", "http://x", "-i", rollouts, "-o", output, "--resume")
    assert result.exit_code == 0, result.output
    assert records_of(gzip.decompress(output.read_bytes())) == expected
    assert len(reference.seen) == (2 if cut == 30 else 1), "a line counts once its newline can be read"
    assert not list(rollouts.parent.glob("*.part"))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n"), lambda data: data.rstrip(b"\n"),
        lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n").rstrip(),
    ],
    ids=["bom", "crlf", "no last newline", "all of them"],
)  # fmt: skip
def test_what_editors_do_to_a_file_does_no_harm(rollouts: Path, expected, change: Any) -> None:
    rollouts.write_bytes(change(rollouts.read_bytes()))
    result, records = score(rollouts)
    assert result.exit_code == 0, result.output
    assert records == expected


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c", "\x1e"])
def test_a_line_ends_at_a_newline_and_nowhere_else(rollouts: Path, reference, character: str) -> None:
    rollout = {"prompt": [1], "completions": [[2]], "id": f"a{character}b"}
    rollouts.write_text(json.dumps(rollout, ensure_ascii=False) + "\n\n" + json.dumps(rollout) + "\n", encoding="utf-8")
    result, _ = score(rollouts)
    assert result.exit_code == 0, result.output
    written = rollouts.with_name("scores.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["id"] for line in written.splitlines()] == [f"a{character}b"] * 2, "nor in what is written"
    assert [json.loads(line)["line"] for line in written.splitlines()] == [1, 3]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x28\xb5\x2f\xfd123", "zstd -dc"), (b"\xfd7zXZ\0", "xz -dc"), (b"BZh91AY", "bzip2 -dc"),
        ("{}".encode("utf-16"), "UTF-16"), (gzip.compress(b'{"prompt": [1], "completions": [[2]]}\n' * 999)[:-20], "break off"),
    ],
    ids=["zstd", "xz", "bzip2", "utf-16", "torn gzip"],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_the_remedy(tmp_path: Path, data: bytes, said: str) -> None:
    source = tmp_path / "in"
    source.write_bytes(data)
    result = run("score", "-u", "http://x", "-i", source, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output
    with pytest.raises(NotReadable):
        list(numbered_lines(source))


def test_output_formats_that_are_not_written_are_named(rollouts: Path) -> None:
    result = run("score", "-u", "http://x", "-i", rollouts, "-o", rollouts.with_name("scores.zst"))
    assert result.exit_code == 1
    assert "zstd" in result.output
    assert not rollouts.with_name("scores.zst").exists()


def test_real_pipes(rollouts: Path, reference, socket_server, expected, tmp_path: Path) -> None:
    server = socket_server(0, reference)
    command = [sys.executable, "-c", "from grpo_client.cli import main; main()", "score"]
    command += ["-u", f"http://127.0.0.1:{server.server_port}"]
    for source, target in (("/dev/stdin", "/dev/stdout"), ("-", "-"), ("/dev/stdin", "-")):
        ran = subprocess.run(
            [*command, "-i", source, "-o", target], input=rollouts.read_bytes(), capture_output=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert records_of(ran.stdout) == expected
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(rollouts.read_bytes()))
    writer.start()
    ran = subprocess.run([*command, "-i", fifo, "-o", "-"], capture_output=True, check=False)
    writer.join()
    assert records_of(ran.stdout) == expected
    broken = subprocess.run(
        ["sh", "-c", '"$@" -i - -o - | head -c 1', "sh", *command], input=rollouts.read_bytes() * 50, capture_output=True,
        check=False,
    )  # fmt: skip
    assert b"Traceback" not in broken.stderr
    assert b"Exception ignored" not in broken.stderr
    server.stop()


def test_a_pipe_cannot_be_resumed(rollouts: Path, reference) -> None:
    result = run("score", "-u", "http://x", "-i", rollouts, "-o", "-", "--resume")
    assert result.exit_code == 1
    assert "nothing to resume" in result.output
    assert reference.seen == []


def interrupted(rollouts: Path, *more: object) -> bytes:
    """A run that died after two lines; returns what is on disk."""
    output = rollouts.with_name("scores.jsonl")
    result, _ = score(rollouts, *more)
    assert result.exit_code == 0, result.output
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:2]))
    return output.read_bytes()


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ([], ["--temperature", 0.7], "temperature (1 there, 0.7 now)"),
        (["--temperature", 0.7], [], "temperature (0.7 there, 1 now)"),
        ([], ["--return", "entropy"], "--return (nothing there, entropy now)"),
        (["--return", "entropy,rank"], ["--return", "rank"], "--return (entropy,rank there, rank now)"),
        ([], ["--top-k", 2], "top_k (0 there, 2 now)"),
        (["--top-k", 2], ["--top-k", 3], "top_k (2 there, 3 now)"),
        (["--top-k", 2], [], "top_k (2 there, 0 now)"),
        (["--temperature", 0.7], ["--return", "rank"], "temperature (0.7 there, 1 now), --return"),
    ],
)
def test_resume_refuses_other_settings_by_name(
    rollouts: Path, reference, then: list[Any], now: list[Any], said: str
) -> None:
    before = interrupted(rollouts, *then)
    reference.seen.clear()
    result, _ = score(rollouts, "--resume", *now)
    assert result.exit_code == 1
    assert said in result.output
    assert "input line 1" in result.output
    assert rollouts.with_name("scores.jsonl").read_bytes() == before
    assert reference.seen == [], "refused before anything is asked"
    assert score(rollouts, "--resume", *then)[0].exit_code == 0


def test_resume_refuses_another_normalizer(rollouts: Path, reference) -> None:
    interrupted(rollouts)
    result, _ = score(rollouts, "--resume", "--normalizer", "stablemax")
    assert result.exit_code == 1
    assert "normalizer (softmax there, stablemax now)" in result.output


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:], lambda lines: [lines[1], lines[0], *lines[2:]], lambda lines: lines[:1],
        lambda lines: [lines[0].replace("[3, 4]", "[3, 5]"), *lines[1:]], lambda lines: ["", *lines],
        lambda lines: [lines[0], lines[1].replace('"ab"', '"abc"'), *lines[2:]], lambda lines: ["{broken", *lines[1:]],
        lambda lines: [lines[0], lines[1].replace("0.5", "0.25"), *lines[2:]],
    ],
    ids=["first gone", "swapped", "shorter", "ids", "moved", "text", "broken", "own temperature"],
)  # fmt: skip
@pytest.mark.parametrize("piped", [False, True])
def test_resume_refuses_another_input(rollouts: Path, reference, change: Any, piped: bool) -> None:
    before = interrupted(rollouts)
    rollouts.write_text("\n".join(change(rollouts.read_text().splitlines())) + "\n")
    reference.seen.clear()
    output = rollouts.with_name("scores.jsonl")
    arguments = ("score", "-u", "http://x", "-o", output, "--resume", "-i")
    result = run(*arguments, "-", stdin=rollouts.read_bytes()) if piped else run(*arguments, rollouts)
    assert result.exit_code == 1
    assert "input" in result.output
    assert output.read_bytes().startswith(before)
    if not piped:
        assert output.read_bytes() == before
        assert reference.seen == []


def test_resume_takes_an_input_that_grew_and_fields_that_are_a_trainers_own(rollouts: Path, expected) -> None:
    interrupted(rollouts)
    lines = [json.loads(line) for line in rollouts.read_text().splitlines()]
    lines[0]["reward"] = 7
    rollouts.write_text("\n".join(map(json.dumps, [*lines, {"prompt": [9], "completions": [[9]]}])))
    result, records = score(rollouts, "--resume", "--encoding", "json", "--in-flight", 1)
    assert result.exit_code == 0, result.output
    assert records[:4] == expected
    assert records[4]["line"] == 5


def test_resume_of_a_pipe_goes_on(rollouts: Path, expected) -> None:
    interrupted(rollouts)
    output = rollouts.with_name("scores.jsonl")
    result = run("score", "-u", "http://x", "-i", "-", "-o", output, "--resume", stdin=rollouts.read_bytes())
    assert result.exit_code == 0, result.output
    assert records_of(output.read_bytes()) == expected


@pytest.mark.parametrize("spoil", ["twice", "foreign", "two references", "no digest"])
def test_resume_refuses_a_file_that_no_run_wrote(rollouts: Path, reference, spoil: str) -> None:
    first, second = interrupted(rollouts).splitlines(keepends=True)
    output = rollouts.with_name("scores.jsonl")
    spoiled = {
        "twice": first + first,
        "foreign": first + b'{"line": 2, "fingerprint": "f00d"}\n',
        "two references": first + second.replace(b"f00d", b"beef"),
        "no digest": first.replace(b'"request"', b'"other"'),
    }[spoil]
    output.write_bytes(spoiled)
    reference.seen.clear()
    result, _ = score(rollouts, "--resume")
    assert result.exit_code == 1
    assert "--overwrite" in result.output
    assert output.read_bytes() == spoiled
    assert reference.seen == []


def test_a_dead_server_is_named_at_once_and_given_up_when_told(rollouts: Path, reference, monkeypatch) -> None:
    def dead(request: httpx.Request) -> None:
        raise httpx.ConnectError("Connection refused")

    reference.before = dead
    seen: dict[str, Any] = {}

    def connect(*args: Any, **options: Any) -> ReferenceClient:
        seen.update(options)
        return ReferenceClient(*args, transport=httpx.MockTransport(reference), **options)

    monkeypatch.setattr(cli, "ReferenceClient", connect)
    result, _ = score(rollouts, "--max-wait", 1.2)
    assert result.exit_code == 1
    warned, failed = result.stderr.index("warning: http://x: ConnectError"), result.stderr.index("error: gave up after")
    assert warned < failed
    assert "--max-wait=1.2 s" in result.stderr
    assert "trying again for up to 1 s" in result.stderr
    assert result.stderr.count("warning: ") == 1
    reference.before = lambda request: None
    score(rollouts, "--overwrite")
    assert seen["retry"].max_wait == 60.0


@pytest.mark.parametrize("arguments", [("-i", "nowhere"), ("-i", "."), ("-o", "."), ("-o", "nowhere/scores")])
def test_paths_that_cannot_be_end_with_status_2(
    rollouts: Path, reference, arguments: tuple[str, str], monkeypatch
) -> None:
    monkeypatch.chdir(rollouts.parent)
    given = {"-i": str(rollouts), "-o": "scores.jsonl"} | dict([arguments])
    result = run("score", "-u", "http://x", *(word for pair in given.items() for word in pair))
    assert result.exit_code == 2
    assert "no file" in result.output or "directory" in result.output
    assert reference.seen == []
