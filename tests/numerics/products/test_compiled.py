"""The product kernels as a GPU would get them: compiled for sm_80 and sm_90, without a GPU. No spilled register, and the matrix
instructions of the architecture where the operands are halves."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the CUDA kernels need triton: pip install triton")

import triton
from grpo_numerics.products.blocks import product_blocks
from grpo_numerics.products.grouped_kernel import grouped_kernel
from grpo_numerics.products.kernel import launch_options, linear_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

pytestmark = pytest.mark.timeout(900)  # seconds of work; on a machine full of other work, minutes

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INPUTS = 4096
NUMBERS = {"rows", "outputs", "inputs", "blocks_m", "output_step", "input_step"}
# Of the grouped kernel: a weight's outputs lie one behind another, or its inputs do.
LAID_OUT = {"linear": None, "grouped": "input_step", "grouped, transposed": "output_step"}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@pytest.mark.parametrize(
    ("kind", "with_bias"), [("linear", False), ("linear", True), ("grouped", True), ("grouped, transposed", True)]
)
@pytest.mark.parametrize("dtype", TYPES, ids=TYPES.get)
@pytest.mark.parametrize(("architecture", "instruction"), [(80, "HMMA"), (90, "HGMMA")])
def test_it_fits_the_machine(
    architecture: int, instruction: str, dtype: torch.dtype, with_bias: bool, kind: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    options = launch_options(product_blocks(dtype, divmod(architecture, 10)), INPUTS)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    kernel = linear_kernel if LAID_OUT[kind] is None else grouped_kernel
    fixed = {**options} if with_bias else {**options, "bias": None}
    if LAID_OUT[kind] is not None:
        fixed[LAID_OUT[kind]] = 1
    names = kernel.arg_names
    types = {name: "i32" if name in NUMBERS else f"*{TYPES[dtype]}" for name in names} | {"experts": "*i32"}
    signature = {name: "constexpr" if name in fixed else types[name] for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in fixed and name not in ("rows", "blocks_m")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch)
    (cubin := tmp_path / "kernel.cubin").write_bytes(binary.asm["cubin"])

    def dumped(flag: str) -> str:
        return subprocess.run([BINARIES / "cuobjdump", flag, cubin], capture_output=True, text=True, check=True).stdout

    usage = dict(re.findall(r"(\w+):(\d+)", dumped("--dump-resource-usage")))
    sass = dumped("-sass")
    assert int(usage["STACK"]) == 0
    assert not re.search(r"\b(STL|LDL)\b", sass), "registers are spilled"
    assert int(usage["REG"]) <= 255
    assert binary.metadata.shared <= {80: 163, 90: 227}[architecture] * 1024
    if dtype == torch.float32:
        assert not re.search(r"\b(HMMA|HGMMA)\b", sass), "fp32 is not to be rounded to what matrix units take"
    else:
        assert re.search(rf"\b{instruction}\b", sass), "no matrix instructions"
