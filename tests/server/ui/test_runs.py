"""GET /ui/api/runs: whole lines of the known files of listed runs, and nothing else that lies on the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpo_server.routes.ui import _run_files, _run_findings
from server_fakes import FakeEngine, serving

URL = "/ui/api/runs"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """runs/one with five steps of metrics and of samples, beside a secret that is no run's."""
    write(tmp_path / "runs" / "one" / "metrics.jsonl", [{"step": k, "kl": k / 10} for k in range(5)])
    write(tmp_path / "runs" / "one" / "samples.jsonl", [group(k, g) for k in range(5) for g in range(3)])
    (tmp_path / "runs" / "one" / "config.json").write_text('{"secret": 1}')
    (tmp_path / "secret.jsonl").write_text('{"step": 0, "secret": 1}\n')
    return tmp_path / "runs"


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def group(step: int, number: int) -> dict[str, Any]:
    """Two completions of three tokens; the policy likes the last one of group 1 much more than the reference does."""
    odd = -9.0 if number == 1 else -1.0
    return {
        "step": step,
        "number": number,
        "prompt_ids": [1, 2],
        "completion_ids": [[3, 4, 5], [3, 4, 6]],
        "policy_logprobs": [[-1.0, -1.0, -1.0]] * 2,
        "ref_logprobs": [[-1.0, -1.0, -1.0], [-1.0, -1.0, odd]],
    }


def parsed(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.anyio
async def test_runs_are_listed_the_latest_first(engine: FakeEngine, runs: Path) -> None:
    write(runs / "two" / "metrics.jsonl", [{"step": 0}])
    os.utime(runs / "two" / "metrics.jsonl", (1, 1))
    (runs / "empty").mkdir()
    write(runs / ".hidden" / "metrics.jsonl", [{"step": 0}])
    async with serving(engine, runs=runs) as client:
        listed = (await client.get(URL)).json()["runs"]
    assert [run["name"] for run in listed] == ["one", "two"]
    assert set(listed[0]["files"]) == {"metrics.jsonl", "samples.jsonl"}
    assert listed[0]["files"]["metrics.jsonl"] == (runs / "one" / "metrics.jsonl").stat().st_size
    assert listed[1]["changed"] == 1


@pytest.mark.anyio
async def test_a_run_may_be_named_itself(engine: FakeEngine, runs: Path) -> None:
    async with serving(engine, runs=runs / "one") as client:
        assert [run["name"] for run in (await client.get(URL)).json()["runs"]] == ["one"]
        assert len(parsed(await client.get(f"{URL}/one/metrics.jsonl"))) == 5


@pytest.mark.anyio
async def test_a_growing_file_is_followed_by_whole_lines(engine: FakeEngine, runs: Path) -> None:
    metrics = runs / "one" / "metrics.jsonl"
    async with serving(engine, runs=runs) as client:
        first = await client.get(f"{URL}/one/metrics.jsonl")
        assert [r["step"] for r in parsed(first)] == [0, 1, 2, 3, 4]
        at = int(first.headers["X-Next-Byte"])
        assert at == int(first.headers["X-File-Size"]) == metrics.stat().st_size
        with metrics.open("a") as file:
            file.write('{"step": 5}\n{"step": 6, "k')
        second = await client.get(f"{URL}/one/metrics.jsonl", params={"after": at})
        assert parsed(second) == [{"step": 5}]
        assert int(second.headers["X-File-Size"]) > int(second.headers["X-Next-Byte"])
        with metrics.open("a") as file:
            file.write('l": 1}\n')
        third = await client.get(f"{URL}/one/metrics.jsonl", params={"after": second.headers["X-Next-Byte"]})
        assert parsed(third) == [{"step": 6, "kl": 1}]
        assert first.headers["X-File-Id"] == third.headers["X-File-Id"]
        nothing = await client.get(f"{URL}/one/metrics.jsonl", params={"after": third.headers["X-Next-Byte"]})
        assert parsed(nothing) == []


@pytest.mark.anyio
async def test_a_file_that_was_written_anew_says_so(engine: FakeEngine, runs: Path) -> None:
    async with serving(engine, runs=runs) as client:
        before = await client.get(f"{URL}/one/metrics.jsonl")
        write(runs / "draft", [{"step": 0}])
        os.replace(runs / "draft", runs / "one" / "metrics.jsonl")
        beyond = await client.get(f"{URL}/one/metrics.jsonl", params={"after": before.headers["X-Next-Byte"]})
        again = await client.get(f"{URL}/one/metrics.jsonl")
    assert beyond.status_code == 422
    assert beyond.json()["error"]["param"] == "after"
    assert "begin at 0" in beyond.json()["error"]["message"]
    assert again.headers["X-File-Id"] != before.headers["X-File-Id"]


@pytest.mark.anyio
async def test_an_answer_is_bounded_and_goes_on(engine: FakeEngine, runs: Path) -> None:
    records = [{"step": k, "text": "x" * 1000} for k in range(3000)]
    write(runs / "long" / "metrics.jsonl", records)
    got: list[dict[str, Any]] = []
    at = rounds = 0
    async with serving(engine, runs=runs) as client:
        while True:
            answer = await client.get(f"{URL}/long/metrics.jsonl", params={"after": at})
            assert len(answer.content) <= _run_files.MOST_BYTES
            if not answer.content:
                break
            got += parsed(answer)
            at, rounds = int(answer.headers["X-Next-Byte"]), rounds + 1
    assert got == records
    assert rounds == 2


@pytest.mark.anyio
async def test_a_line_too_long_is_an_error_and_no_endless_loop(engine: FakeEngine, runs: Path) -> None:
    write(runs / "long" / "metrics.jsonl", [{"text": "x" * _run_files.MOST_BYTES}])
    async with serving(engine, runs=runs) as client:
        answer = await client.get(f"{URL}/long/metrics.jsonl")
    assert answer.status_code == 422
    assert "line of more than" in answer.json()["error"]["message"]


@pytest.mark.anyio
async def test_the_middle_of_a_line_is_refused(engine: FakeEngine, runs: Path) -> None:
    async with serving(engine, runs=runs) as client:
        answer = await client.get(f"{URL}/one/metrics.jsonl", params={"after": 3})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "after"


@pytest.mark.anyio
@pytest.mark.parametrize("lengths", [[1] * 40, [5, 200_000, 3, 70_000, 1, 1, 90_000, 12], [1]])
async def test_a_step_is_found_wherever_it_stands(engine: FakeEngine, runs: Path, lengths: list[int]) -> None:
    """Steps 0, 2, 4 ... with one, two or three lines, of any length, and a last line that is cut."""
    records = [
        {"step": 2 * k, "line": j, "text": "x" * length} for k, length in enumerate(lengths) for j in range(k % 3 + 1)
    ]
    write(runs / "odd" / "samples.jsonl", records)
    with (runs / "odd" / "samples.jsonl").open("a") as file:
        file.write('{"step": 1000, "li')
    async with serving(engine, runs=runs) as client:
        for step in range(2 * len(lengths) + 1):
            found = parsed(await client.get(f"{URL}/odd/samples.jsonl", params={"step": step}))
            assert found == [record for record in records if record["step"] == step], step
        assert parsed(await client.get(f"{URL}/odd/samples.jsonl", params={"step": 1000})) == []


@pytest.mark.anyio
async def test_lines_without_a_step_cannot_be_looked_up(engine: FakeEngine, runs: Path) -> None:
    write(runs / "odd" / "samples.jsonl", [{"prompt": "a"}])
    async with serving(engine, runs=runs) as client:
        answer = await client.get(f"{URL}/odd/samples.jsonl", params={"step": 0})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "step"


@pytest.mark.anyio
async def test_findings_point_at_step_group_completion_and_position(engine: FakeEngine, runs: Path) -> None:
    async with serving(engine, runs=runs) as client:
        answer = await client.get(f"{URL}/one/findings")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["groups"], body["completions"], body["tokens"], body["left_out"]) == (15, 30, 90, 0)
    few = next(f for f in body["findings"] if f["name"] == "few_tokens")
    assert few["verdict"] == "look"
    assert sorted(few["tokens"][:5]) == [[k, 1, 1, 2] for k in range(5)]  # those with the largest k3


@pytest.mark.anyio
async def test_findings_of_a_long_file_rest_on_its_ends(
    engine: FakeEngine, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_run_findings, "_EACH_END", 1500)
    async with serving(engine, runs=runs) as client:
        body = (await client.get(f"{URL}/one/findings")).json()
    assert 0 < body["groups"] < 15
    assert body["left_out"] > 0
    [few] = [f for f in body["findings"] if f["name"] == "few_tokens"]
    odd = [token for token in few["tokens"] if token[1:] == [1, 1, 2]]
    assert odd
    assert few["tokens"][: len(odd)] == odd  # however many lines of a step were left out


@pytest.mark.anyio
async def test_a_run_of_text_alone_has_findings_that_need_data(engine: FakeEngine, runs: Path) -> None:
    write(runs / "text" / "samples.jsonl", [{"step": 0, "prompt": "a", "completions": ["b"]}])
    async with serving(engine, runs=runs) as client:
        body = (await client.get(f"{URL}/text/findings")).json()
    assert {f["verdict"] for f in body["findings"]} == {"needs_data"}


@pytest.mark.anyio
async def test_findings_of_broken_lines_say_which_file(engine: FakeEngine, runs: Path) -> None:
    (runs / "one" / "samples.jsonl").write_text('{"step": 0,\n{"step": 1}\n')
    async with serving(engine, runs=runs) as client:
        answer = await client.get(f"{URL}/one/findings")
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "samples.jsonl"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    [
        "one/config.json",
        "one/report.html",
        "one/%2e%2e",
        "one/%2e",
        "one/../../secret.jsonl",
        "one/..%2f..%2fsecret.jsonl",
        "one/%2e%2e%2f%2e%2e%2fsecret.jsonl",
        "..%2fsecret.jsonl",
        "%2e%2e/secret.jsonl",
        "../runs/one/config.json",
        "..%2fruns%2fone/metrics.jsonl",
        "%2fetc/passwd",
        "one%00/metrics.jsonl",
        "one/metrics.jsonl%00",
        "./metrics.jsonl",
        "%2e/metrics.jsonl",
        "missing/metrics.jsonl",
        "missing/findings",
        "one/METRICS.JSONL",
        "a" * 5000 + "/metrics.jsonl",
    ],
)
async def test_no_other_path_leads_anywhere(engine: FakeEngine, runs: Path, path: str) -> None:
    async with serving(engine, runs=runs) as client:
        # as it stands: httpx would tidy dots away
        url = httpx.URL("http://server").copy_with(raw_path=f"{URL}/{path}".encode())
        answer = await client.get(url)
    assert answer.status_code == 404, answer.text
    assert "secret" not in answer.text.replace("secret.jsonl", "")


@pytest.fixture
def links(runs: Path) -> Path:
    """Every way in which a name below the runs may be something else than it says."""
    (runs / "linked").symlink_to(runs / "one", target_is_directory=True)
    (runs / "outside").symlink_to(runs.parent, target_is_directory=True)
    (runs / "mine").mkdir()
    (runs / "mine" / "metrics.jsonl").symlink_to(runs.parent / "secret.jsonl")
    os.mkfifo(runs / "mine" / "samples.jsonl")
    (runs / "mine" / "eval.jsonl").mkdir()
    return runs


@pytest.mark.anyio
async def test_links_pipes_and_directories_are_not_read(engine: FakeEngine, links: Path) -> None:
    async with serving(engine, runs=links) as client:
        assert [run["name"] for run in (await client.get(URL)).json()["runs"]] == ["one"]
        for path in ("linked/metrics.jsonl", "outside/metrics.jsonl", *(f"mine/{name}" for name in _run_files.KNOWN)):
            assert (await client.get(f"{URL}/{path}")).status_code == 404, path


@pytest.mark.anyio
async def test_without_runs_there_is_nothing(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        assert (await client.get(URL)).json() == {"shown": False, "runs": []}
        for path in (f"{URL}/one/metrics.jsonl", f"{URL}/one/findings"):
            answer = await client.get(path)
            assert answer.status_code == 404
            assert "--runs" in answer.json()["error"]["message"]


@pytest.mark.anyio
async def test_a_directory_that_is_gone_is_said(engine: FakeEngine, tmp_path: Path) -> None:
    async with serving(engine, runs=tmp_path / "gone") as client:
        answer = await client.get(URL)
    assert answer.status_code == 404
    assert "cannot be read" in answer.json()["error"]["message"]


@pytest.mark.anyio
async def test_runs_are_behind_the_key(engine: FakeEngine, runs: Path) -> None:
    async with serving(engine, runs=runs, api_key="sesame") as client:
        for path in (URL, f"{URL}/one/metrics.jsonl", f"{URL}/one/findings"):
            assert (await client.get(path)).status_code == 401
            allowed = await client.get(path, headers={"Authorization": "Bearer sesame"})
            assert allowed.status_code == 200
