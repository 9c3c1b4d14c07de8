"""`python -m benchmarks.gpu` on a machine without a GPU: every stage runs on small shapes, and none takes the others with it.

What it measures there means nothing; that its figures are right does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import apart, here, main
from benchmarks.gpu.stages import STAGES, Stage

Lines = list[dict[str, Any]]


def ran(stage: str) -> Lines:
    lines: Lines = []
    assert here(STAGES[stage], "cpu", True, 600.0, lambda line: lines.append(dict(line))) == 0, lines
    assert lines
    assert all(line["stage"] == stage and "error" not in line for line in lines)
    json.dumps(lines, allow_nan=False)
    return lines


def figures(lines: Lines, name: str) -> list[Any]:
    return [line[name] for line in lines if name in line]


def test_all_stages_together_take_less_than_nine_minutes() -> None:
    assert sum(stage.limit_s for stage in STAGES.values()) < 9 * 60
    assert next(iter(STAGES)) == "device"


def test_device() -> None:
    assert ran("device")[0]["dtype"] == "float32"


def test_attention() -> None:
    lines = ran("attention")
    assert all(0 <= error < 1e-6 for error in figures(lines, "error_f64"))
    assert figures(lines, "equal") == [True]
    assert figures(lines, "same_bits_again") == [True]
    assert figures(lines, "nan") == [False]


def test_products() -> None:
    lines = ran("products")
    assert [line["what"] for line in lines] == ["query, output", "key, value", "gate, up", "down", "variables"]


def test_head() -> None:
    lines = ran("head")
    assert all(0 <= error < 1e-5 for error in figures(lines, "error_nats"))
    assert figures(lines, "equal") == [True]


def test_backward() -> None:
    lines = ran("backward")
    assert 0 < lines[0]["error_hidden"] < 1e-5
    assert 0 < lines[0]["error_weight"] < 1e-5
    assert figures(lines, "nan") == [False]


def test_model() -> None:
    lines = ran("model")
    by_name = {line["what"]: line for line in lines}
    assert by_name["padded, plain transformers"]["mean_difference_nats"] < 1e-5
    assert len(by_name["profile"]["device_ms"]) == 10
    assert by_name["new path"]["client_tokens_per_s"] > 0
    assert by_name["old path"]["client_tokens_per_s"] > 0
    assert by_name["layers fused"]["parts"] == 0  # on a CPU there is nothing to fuse


def test_invariance() -> None:
    claim, bits, cost = ran("invariance")
    assert claim["mode"] == "invariant"
    assert cost["times_fast"] > 0
    assert (
        claim["bitwise"] == all(value for name, value in bits.items() if isinstance(value, bool))
        or not claim["bitwise"]
    )


@pytest.mark.timeout(600)  # a server of its own
def test_service() -> None:
    lines = ran("service")
    assert lines[0]["tier"] == "packed"
    assert lines[1]["client_tokens_per_s"] > 0


def test_an_error_is_a_line() -> None:
    lines: Lines = []
    assert here(Stage("head", 1.0), "cuda:99", True, 9.0, lambda line: lines.append(dict(line))) == 1
    [line] = lines
    assert line["stage"] == "head"
    assert "Error" in line["error"]


@pytest.mark.parametrize(
    ("code", "limit", "error"),
    [
        ('import os; print(\'{"stage": "x"}\', flush=True); os.abort()', 60.0, "the process ended with code -6"),
        (
            'import threading; print(\'{"stage": "x"}\', flush=True); threading.Event().wait()',
            2.0,
            "ended after 2 seconds",
        ),
    ],
    ids=["dies", "hangs"],
)
def test_a_process_that_dies_or_hangs_is_a_line_after_its_own(code: str, limit: float, error: str) -> None:
    lines: Lines = []
    assert apart([sys.executable, "-c", code], "x", limit, lambda line: lines.append(dict(line))) != 0
    assert [line.get("error") for line in lines][-1] == error
    assert lines[0] == {"stage": "x"} or limit == 2.0


def test_the_command_runs_each_stage_in_a_process_and_keeps_the_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert main(["device", "--device", "cpu", "--tiny", "--out", str(out)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["stage"] for line in printed] == ["device", "all"]
    assert printed == [json.loads(line) for line in out.read_text().splitlines()]
    with pytest.raises(SystemExit):
        main(["no such stage"])
