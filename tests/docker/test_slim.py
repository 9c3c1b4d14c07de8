"""What is taken out of the image: nothing that torch needs to be imported and to compute."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import networkx
import pytest
import sympy
import torch
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slim() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slim", ROOT / "docker" / "slim.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linked(package: ModuleType, into: Path) -> None:
    """A copy without bytes: hard links."""
    home = Path(package.__file__ or "").parent
    try:
        shutil.copytree(home, into / home.name, copy_function=os.link, symlinks=True)
    except (OSError, shutil.Error):
        pytest.skip("the environment is on another file system than the tests' directory")


def test_torch_computes_without_what_is_taken_out(slim: ModuleType, tmp_path: Path) -> None:
    for package in (torch, sympy, networkx):
        linked(package, tmp_path)
    freed = slim.remove(tmp_path)
    assert freed > 50e6
    assert slim.remove(tmp_path) == 0
    code = (
        "import networkx, sympy, torch, torch._dynamo; "
        "import torch.nn.functional as F; m = torch.nn.Linear(4, 4); m(torch.ones(2, 4)).sum().backward(); "
        "print(torch.__file__, F.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 2)] * 3).sum().item())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(tmp_path / "torch" / "__init__.py"), "4.0"]


def test_the_image_writes_only_where_compose_lets_it() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for name in ("server", "server-gpu"):
        assert services[name]["read_only"] is True
        assert services[name]["tmpfs"] == ["/tmp"]
        assert services[name]["volumes"] == ["models:/models"]
        assert services[name]["mem_limit"]
    for variable in ("HF_HOME", "GRPO_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert f"{variable}=/models/" in dockerfile
