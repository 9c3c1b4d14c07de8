"""What an image does once while it is built, done here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FIRST_RUN = Path(__file__).parents[2] / "docker" / "first_run.py"


@pytest.mark.parametrize("extra", ["server", "training"])
def test_what_the_image_is_for_runs(extra: str) -> None:
    ran = subprocess.run([sys.executable, FIRST_RUN, extra], capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ("POST /v1/logprobs 200" in ran.stderr) is (extra == "server")


def test_an_image_whose_server_does_not_start_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_MODE", "no such mode")
    ran = subprocess.run(
        [sys.executable, FIRST_RUN, "server"], capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 1
    assert "the server ended with status 2 before it was ready" in ran.stderr
