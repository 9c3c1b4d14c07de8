"""What is taken out of the image: nothing that torch needs to be imported and to compute."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import networkx
import numpy
import pytest
import sympy
import torch
import transformers
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


PROGRAM = """
import networkx, numpy, sympy, torch, torch._dynamo, torch.distributed.tensor, transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

print(torch.__file__, transformers.__file__, numpy.__file__)
print(scaled_dot_product_attention(*[torch.ones(1, 1, 2, 2)] * 3).sum().item())
config = Qwen3MoeConfig(
    vocab_size=16, hidden_size=16, intermediate_size=16, moe_intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, num_experts=2, num_experts_per_tok=1,
)
model = AutoModelForCausalLM.from_config(config)
model.gradient_checkpointing_enable()
ids = torch.arange(8)[None]
model.train()(input_ids=ids, labels=ids).loss.backward()
print(all(p.grad.isfinite().all().item() for p in model.parameters() if p.grad is not None))
"""


def test_torch_and_transformers_compute_without_what_is_taken_out(slim: ModuleType, tmp_path: Path) -> None:
    packages = (torch, transformers, numpy, sympy, networkx)
    for package in packages:
        linked(package, tmp_path)
    if (carried := Path(numpy.__file__).parents[1] / "numpy.libs").is_dir():
        shutil.copytree(carried, tmp_path / "numpy.libs", copy_function=os.link)
    freed = slim.remove(tmp_path)
    assert freed > 60e6
    assert slim.remove(tmp_path) == 0
    assert not list((tmp_path / "transformers").rglob("modular_*.py"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stderr
    files = [str(tmp_path / name / "__init__.py") for name in ("torch", "transformers", "numpy")]
    assert ran.stdout.split() == [*files, "4.0", "True"]


@pytest.mark.skipif(shutil.which("strip") is None, reason="needs binutils")
def test_a_stripped_library_runs_and_one_that_a_wheel_carries_stays(slim: ModuleType, tmp_path: Path) -> None:
    program = "int helper(int x) { return x + 1; } int answer(void) { return helper(41); }"
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    for place in ("package", "package.libs"):
        (tmp_path / place).mkdir()
        subprocess.run(
            [compiler, "-x", "c", "-g", "-shared", "-fPIC", "-o", tmp_path / place / "own.so", "-"],
            input=program,
            text=True,
            check=True,
        )
    carried = (tmp_path / "package.libs" / "own.so").read_bytes()
    assert slim.strip(tmp_path) > 0
    assert (tmp_path / "package.libs" / "own.so").read_bytes() == carried
    assert ctypes.CDLL(str(tmp_path / "package" / "own.so")).answer() == 42
    # a layer of the image would hold the file once more
    before = (tmp_path / "package" / "own.so").stat().st_ino
    assert slim.strip(tmp_path) == 0
    assert (tmp_path / "package" / "own.so").stat().st_ino == before
    assert not list(tmp_path.rglob("*.stripped"))


def test_the_image_writes_only_where_compose_lets_it() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for name in ("server", "server-gpu"):
        assert services[name]["read_only"] is True
        assert services[name]["tmpfs"] == ["/tmp"]
        assert services[name]["volumes"] == ["models:/models"]
        assert services[name]["mem_limit"]
    for variable in ("HF_HOME", "GRPO_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"):
        assert f"{variable}=/models/" in dockerfile
