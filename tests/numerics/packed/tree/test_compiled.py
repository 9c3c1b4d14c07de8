"""The tree kernels as a GPU would get them: compiled for sm_80 and sm_90, without a GPU.

No spilled register, matrix instructions where there are units for them, shared memory that the device has. All cases are
`python -m tools.tree_kernels`; here are the plainest and the most elaborate of the commonest head.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the CUDA kernels need triton: pip install triton")

from tools import tree_kernels
from tools.tree_kernels import Case

# Seconds of work; on a machine full of other work, minutes.
pytestmark = pytest.mark.timeout(900)

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("architecture", tree_kernels.ARCHITECTURES)
@pytest.mark.parametrize("gradient", [False, True], ids=["attention", "gradients"])
@pytest.mark.parametrize("elaborate", [False, True], ids=["plain", "elaborate"])
def test_halves_use_matrix_units_and_spill_nothing(architecture: int, gradient: bool, elaborate: bool) -> None:
    found = tree_kernels.compiled(Case(128, 128, 7, elaborate=elaborate), architecture, gradient=gradient)
    assert (found.spills, found.stack_bytes) == (0, 0)
    assert found.shared_bytes <= SHARED_BYTES[architecture]
    assert {80: "HMMA", 90: "HGMMA"}[architecture] in found.matrix_instruction.split("+")


@pytest.mark.parametrize("gradient", [False, True], ids=["attention", "gradients"])
def test_fp32_is_ieee_and_spills_nothing(gradient: bool) -> None:
    found = tree_kernels.compiled(Case(128, 128, 7, torch.float32), 90, gradient=gradient)
    assert (found.spills, found.stack_bytes) == (0, 0)
    assert not found.matrix_instruction
