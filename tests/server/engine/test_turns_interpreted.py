"""The engine on the tree kernels, on a machine without a GPU; see `interpreted_turns`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the CUDA kernels need triton: pip install triton")


@pytest.mark.timeout(900)  # a minute of work; on a machine full of other work, minutes
def test_turns_in_exact_mode_under_the_interpreter() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            str(Path(__file__).with_name("interpreted_turns.py")),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert "passed" in done.stdout
