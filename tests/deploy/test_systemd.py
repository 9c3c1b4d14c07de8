"""The systemd unit: read by systemd itself, with settings that the server has."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from grpo_server.cli import EXIT_USAGE
from grpo_server.config import ENV_PREFIX, ServerConfig

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "grpo-server.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """With a program that is there in the place of the server's."""
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    ran = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    faults = [line for line in ran.stderr.splitlines() if UNIT.name in line]
    assert not faults, faults


def test_the_unit_says_what_the_server_does() -> None:
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")]
    values = {(key, value.partition("=")[0] if key == "Environment" else ""): value for key, _, value in lines}
    for name in (name for key, name in values if key == "Environment" and name.startswith(ENV_PREFIX)):
        assert name.removeprefix(ENV_PREFIX).lower() in ServerConfig.model_fields
    started = values["ExecStart", ""]
    for flag in re.findall(r"--([a-z-]+)", started):
        assert flag.replace("-", "_") in ServerConfig.model_fields
    assert int(values["TimeoutStopSec", ""]) > ServerConfig(model="m").drain_timeout
    assert values["RestartPreventExitStatus", ""] == str(EXIT_USAGE)
    assert "--keys-file" in started, "SIGHUP, which a reload sends, ends a server that has nothing to read again"
    assert "HUP" in values["ExecReload", ""]
