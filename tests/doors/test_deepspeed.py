"""OrthoGrad and StableMax under DeepSpeed ZeRO on two CPU processes learn what one process learns without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed", reason="an environment with DeepSpeed: make test-doors")

SCRIPT = Path(__file__).with_name("ranks") / "zero.py"
QUIET = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}

# The first run compiles a part of DeepSpeed.
pytestmark = pytest.mark.timeout(900)


def run(out: Path, stage: str, granularity: str, **more: str) -> subprocess.CompletedProcess[str]:
    out.mkdir()
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if stage != "none" else []
    command = [sys.executable, *ranks, str(SCRIPT), str(out), stage, granularity]
    return subprocess.run(command, env=os.environ | QUIET | more, capture_output=True, text=True, check=False)


def learned(out: Path, stage: str, granularity: str) -> dict[str, Any]:
    done = run(out, stage, granularity)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "learned.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One process without DeepSpeed, for each granularity, and without the projection."""
    kinds = ("tensor", "row", "global", "plain")
    return {kind: learned(tmp_path_factory.mktemp("alone") / kind, "none", kind) for kind in kinds}


@pytest.mark.parametrize(
    ("stage", "granularity"),
    [
        ("3", "tensor"),
        ("2", "tensor"),
        ("1", "tensor"),
        ("0", "tensor"),
        ("3", "row"),
        ("2", "global"),
        ("own", "tensor"),
    ],
)
def test_two_ranks_learn_what_one_process_learns(
    stage: str, granularity: str, alone: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    one, two = alone[granularity], learned(tmp_path / "two", stage, granularity)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    _was_projected(two)
    # Adam divides by a root: fp32 rounding of a small gradient grows to some 1e-6 of a step of 1e-2.
    for name, values in one["weights"].items():
        assert two["weights"][name] == pytest.approx(values, abs=2e-5), name
    if granularity != "plain":
        assert abs(one["losses"][-1] - alone["plain"]["losses"][-1]) > 1e-3


def _was_projected(told: dict[str, Any], within: float = 1e-6) -> None:
    """DeepSpeed itself was asked for every gradient after the projection: it is orthogonal to its weight."""
    assert told["measured"] > 0
    assert told["cosine"] < within


@pytest.mark.parametrize("stage", ["2", "3"])
def test_offloaded_to_the_cpu(stage: str, alone: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    two = learned(tmp_path / "two", f"{stage}-offload", "tensor")
    assert two["losses"] == pytest.approx(alone["tensor"]["losses"], abs=1e-6)
    _was_projected(two)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_bfloat16(stage: str, alone: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """The model's weights and products are rounded; the optimizer's weights and the projection are not."""
    two = learned(tmp_path / "two", f"{stage}-bf16", "tensor")
    assert two["losses"] == pytest.approx(alone["tensor"]["losses"], rel=1e-2)
    _was_projected(two, within=2**-8)  # DeepSpeed keeps the projected gradient in bfloat16


@pytest.mark.parametrize(
    ("stage", "set_by_launcher", "says"),
    [
        ("2", {"ACCELERATE_USE_CPU": "true"}, "accelerate leaves DeepSpeed out"),
        ("2-alone", {}, "accelerate counts 1 process and DeepSpeed 2"),
    ],
)
def test_deepspeed_that_would_not_be_one_run_is_refused(
    stage: str, set_by_launcher: dict[str, str], says: str, tmp_path: Path
) -> None:
    done = run(tmp_path / "two", stage, "tensor", **set_by_launcher)
    assert done.returncode != 0
    assert says in done.stderr
