"""Every command and every package says which version it is."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("grpo_client", "grpo_numerics", "grpo_server", "grpo_training")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("command", sorted(PYPROJECT["project"]["scripts"]))
def test_every_command_says_which_version_it_is(command: str) -> None:
    script = Path(sys.executable).with_name(command)
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, f"{command} {PYPROJECT['project']['version']}"), ran.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_which_version_it_is(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__version__ == PYPROJECT["project"]["version"]
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing
