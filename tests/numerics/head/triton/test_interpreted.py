"""The Triton kernels on a machine without a GPU: what they compute, interpreted; see `interpreted` and `test_picked`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the CUDA kernels need triton: pip install triton")

CASES = [Path(__file__).with_name("interpreted.py"), Path(__file__).parents[1] / "test_picked.py"]


@pytest.mark.timeout(900)  # a minute of work; on a machine full of other work, minutes
def test_the_kernels_match_float64_under_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert "passed" in done.stdout


def test_cpu_tensors_do_not_go_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo_numerics.head.choice import on_triton

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not on_triton(torch.zeros(2, 4), torch.zeros(5, 4))
