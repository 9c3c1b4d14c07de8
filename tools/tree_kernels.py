"""The tree attention's kernels as a GPU would get them, compiled without one: a row of docs/kernels.md for each.

python -m tools.tree_kernels                                    with the Triton that is installed
pip install --no-deps --target other-triton triton==3.6.0
PYTHONPATH=other-triton python -m tools.tree_kernels            with another
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from grpo_numerics.packed.tree import backward, forward
from grpo_numerics.packed.tree.blocks import Blocks, HeadSize, backward_blocks, block_of, forward_blocks
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (90, 80)
_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_OF_DTYPE = frozenset({"q", "k", "v", "out", "d_out", "dq", "dk", "dv"})
_TABLES = frozenset({"tiles", "items", "joints", "key_tiles", "runs"})
_FP32 = frozenset({"logsumexp", "deltas", "sinks"})


@dataclass(frozen=True)
class Case:
    """A layer's attention. elaborate: with window, soft-cap and sinks."""

    dim: int
    dim_v: int
    repeats: int
    dtype: torch.dtype = torch.bfloat16
    elaborate: bool = False

    def __str__(self) -> str:
        more = ", window, soft-cap, sinks" if self.elaborate else ""
        return f"{_NAMES[self.dtype]}, heads {self.dim}/{self.dim_v}, {self.repeats}:1{more}"


PLAIN = (
    Case(128, 128, 7),
    Case(64, 64, 8),
    Case(96, 96, 1),
    Case(192, 128, 1),
    Case(256, 256, 2),
    Case(128, 128, 7, torch.float32),
    Case(256, 256, 2, torch.float32),
)
CASES = tuple(replace(case, elaborate=elaborate) for case, elaborate in itertools.product(PLAIN, (False, True)))


@dataclass(frozen=True)
class Compiled:
    """What ptxas made of a kernel."""

    shape: Blocks
    registers: int
    stack_bytes: int
    shared_bytes: int
    spills: int
    matrix_instruction: str
    asynchronous: bool


def compiled(case: Case, architecture: int, *, gradient: bool) -> Compiled:
    """The forward or the backward kernel for one case, with the blocks that the operator would choose."""
    kernel: Any = backward.backward_kernel if gradient else forward.forward_kernel
    sizes = (case.dtype, case.dim, case.dim_v, divmod(architecture, 10))
    shape = backward_blocks(*sizes) if gradient else forward_blocks(*sizes)
    constants = _constants(case, shape, gradient)
    names = kernel.arg_names
    types = {name: _type(name, case) for name in names}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = [n for n in names if n not in constants and (types[n].startswith("*") or n.endswith(("_row", "_head")))]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    binary = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": shape.warps, "num_stages": shape.stages, "enable_fp_fusion": True},
    )
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        usage = dict(re.findall(r"(\w+):(\d+)", _dumped(cubin, "--dump-resource-usage")))
        sass = _dumped(cubin, "-sass")
    found = [name for name in ("HGMMA", "HMMA") if re.search(rf"\b{name}\b", sass)]
    return Compiled(
        shape, int(usage["REG"]), int(usage["STACK"]), binary.metadata.shared, len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "+".join(found), bool(re.search(r"\bLDGSTS\b", sass)),
    )  # fmt: skip


def _constants(case: Case, shape: Blocks, gradient: bool) -> dict[str, Any]:
    size = HeadSize(case.dim, 0) if gradient else HeadSize.of(case.dim)
    constants: dict[str, Any] = {
        "REPEATS": case.repeats, "D": size.whole, "DV": case.dim_v, "BLOCK_M": shape.m, "BLOCK_N": shape.n,
        "BLOCK_D": block_of(size.whole), "BLOCK_DV": block_of(case.dim_v), "WINDOWED": case.elaborate,
        "IEEE": case.dtype == torch.float32,
    }  # fmt: skip
    if not gradient:
        constants |= {"REST": size.rest, "BLOCK_REST": block_of(size.rest or 1)}
    if not case.elaborate:
        constants |= {"bend": None} if gradient else {"bend": None, "sinks": None}
    return constants


def _type(name: str, case: Case) -> str:
    if name in _OF_DTYPE:
        return "*" + _NAMES[case.dtype]
    if name in _FP32:
        return "*fp32"
    return "*i32" if name in _TABLES else "fp32" if name in ("factor", "bend", "scale") else "i32"


def _dumped(cubin: Path, flag: str) -> str:
    return subprocess.run([_BINARIES / "cuobjdump", flag, cubin], capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Print a row for each case and architecture; 1 if a register is spilled."""
    spilled = False
    for case, architecture, gradient in itertools.product(CASES, ARCHITECTURES, (False, True)):
        found = compiled(case, architecture, gradient=gradient)
        spilled |= found.spills > 0
        block = f"{found.shape.m} x {found.shape.n}, {found.shape.warps} warps"
        kind = "gradients" if gradient else "attention"
        units = found.matrix_instruction or "none"
        figures = f"{found.registers} | {found.shared_bytes // 1024} KiB | {found.spills} | {units}"
        sys.stdout.write(f"| {triton.__version__} | {kind} | sm_{architecture}: {case} | {block} | {figures} |\n")
        sys.stdout.flush()
    return int(spilled)


if __name__ == "__main__":
    sys.exit(main())
