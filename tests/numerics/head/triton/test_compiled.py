"""The Triton kernels as a GPU would get them: compiled in bf16 for sm_80 and sm_90, without a GPU.

No spilled register, and the matrix instructions of the architecture. The blocks are those that `blocks` would choose,
for heads from plain to everything at once. docs/kernels.md has the figures.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the CUDA kernels need triton: pip install triton")

import triton
from grpo_numerics.head.triton import backward, blocks, forward
from grpo_numerics.head.triton.tiles import block_options, product_options
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Seconds of work; on a machine full of other work, minutes.
pytestmark = pytest.mark.timeout(900)

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DIM = 4096
ARCHITECTURES = {80: "HMMA", 90: "HGMMA"}
ARGUMENTS = {
    **dict.fromkeys(("hidden", "weight", "right", "left"), "*bf16"),
    **dict.fromkeys(("rows", "vocab", "dim", "out_stride", "height", "width", "depth"), "i32"),
    **dict.fromkeys(("left_stride_m", "left_stride_k"), "i32"),
    **dict.fromkeys(("logit_scale", "softcap"), "fp32"),
    **dict.fromkeys(("width", "tiles", "first_tile"), "i32"),
    **dict.fromkeys(("targets", "keys"), "*i64"),
    **dict.fromkeys(("aboves", "asked", "begins"), "*i32"),
}  # and every other is a pointer to fp32
ALIGNED = {"rows", "dim", "out_stride", "height", "width", "depth", "left_stride_m", "left_stride_k"}
PLAIN = {"logit_scale": None, "softcap": None, "STABLEMAX": False}
ELABORATE = {"STABLEMAX": True}  # and soft-cap, scale, bias, temperature, entropy, rank
_UNASKED: dict[str, Any] = {"asked": None, "begins": None, "asked_logits": None, "width": 0}
CHOSEN: dict[str, dict[str, Any]] = {
    "none": {**_UNASKED, "keys": None, "floor": None, "LIST": 0},
    "asked ids": {"keys": None, "floor": None, "LIST": 0},
    "best 16": {**_UNASKED, "LIST": 16},
    "best 64 and asked ids": {"LIST": 64},
    "every logit and asked ids": {"floor": None, "LIST": 0},
}


@dataclass(frozen=True)
class Compiled:
    registers: int
    stack_bytes: int
    shared_bytes: int
    sass: str


def compiled(kernel: Any, architecture: int, options: dict[str, Any], folder: Path, **types: str) -> Compiled:
    """`kernel` with the arguments in `options` fixed, the others of the types above or as given."""
    options = dict(options)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    names = kernel.arg_names
    types = {name: types.get(name, ARGUMENTS.get(name, "*fp32")) for name in names}
    signature = {name: "constexpr" if name in options else types[name] for name in names}
    aligned = [n for n in names if n not in options and (n in ALIGNED or types[n].startswith("*"))]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=options, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    binary = triton.compile(source, target=target, options={**launch, "enable_fp_fusion": True})
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(binary.asm["cubin"])

    def dumped(flag: str) -> str:
        return subprocess.run([BINARIES / "cuobjdump", flag, cubin], capture_output=True, text=True, check=True).stdout

    usage = dict(re.findall(r"(\w+):(\d+)", dumped("--dump-resource-usage")))
    return Compiled(int(usage["REG"]), int(usage["STACK"]), binary.metadata.shared, dumped("-sass"))


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def check(kernel: Compiled, architecture: int) -> None:
    assert kernel.stack_bytes == 0
    assert not re.search(r"\b(STL|LDL)\b", kernel.sass), "registers are spilled"
    assert kernel.registers <= 255
    assert kernel.shared_bytes <= {80: 163, 90: 227}[architecture] * 1024
    assert re.search(rf"\b{ARCHITECTURES[architecture]}\b", kernel.sass), "no matrix instructions"
    assert re.search(r"\bLDGSTS\b", kernel.sass), "tiles are not copied asynchronously"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("elaborate", [False, True], ids=["plain", "elaborate"])
@pytest.mark.parametrize("chosen", CHOSEN)
def test_scoring(architecture: int, elaborate: bool, chosen: str, tmp_path: Path) -> None:
    crowded = elaborate or chosen != "none"
    shape = blocks.product_blocks(torch.bfloat16, divmod(architecture, 10), elaborate=elaborate, crowded=crowded)
    tile = blocks.vocabulary_tile(151936, shape.n, listed=chosen.startswith("best"))
    options = {"TILE": tile, **product_options(shape, DIM), **CHOSEN[chosen]}
    options |= ELABORATE if elaborate else PLAIN
    check(compiled(forward.partials_kernel, architecture, options, tmp_path), architecture)


@pytest.mark.parametrize(
    ("architecture", "chosen"), [(80, "none"), (80, "asked ids"), (90, "asked ids"), (80, "best 64 and asked ids")]
)
def test_scoring_in_float32_spills_nothing(architecture: int, chosen: str, tmp_path: Path) -> None:
    """IEEE products have no matrix units, and operands lie in registers."""
    best = chosen.startswith("best")
    shape = blocks.product_blocks(torch.float32, divmod(architecture, 10), elaborate=True, crowded=True, best=best)
    options = {"TILE": 1024, **product_options(shape, DIM), **CHOSEN[chosen], **ELABORATE}
    kernel = compiled(forward.partials_kernel, architecture, options, tmp_path, hidden="*fp32", weight="*fp32")
    assert kernel.stack_bytes == 0
    assert not re.search(r"\b(STL|LDL)\b", kernel.sass), "registers are spilled"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scoring_with_a_softcap(architecture: int, tmp_path: Path) -> None:
    shape = blocks.product_blocks(torch.bfloat16, divmod(architecture, 10), elaborate=True, crowded=False)
    options = {"TILE": 1024, **product_options(shape, DIM), "STABLEMAX": False, **CHOSEN["none"]}
    check(compiled(forward.partials_kernel, architecture, options, tmp_path), architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("elaborate", [False, True])
def test_gradient_of_logits(architecture: int, elaborate: bool, tmp_path: Path) -> None:
    shape = blocks.gradient_blocks(torch.bfloat16, divmod(architecture, 10), elaborate=elaborate)
    options = {**product_options(shape, DIM), **(ELABORATE if elaborate else PLAIN)}
    check(compiled(backward.logits_gradient_kernel, architecture, options, tmp_path, out="*bf16"), architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side_by_side", ["left_stride_k", "left_stride_m"], ids=["hidden", "weight"])
def test_gradients_of_hidden_and_weight(architecture: int, side_by_side: str, tmp_path: Path) -> None:
    shape = blocks.accumulate_blocks(torch.bfloat16, divmod(architecture, 10))
    options = {**block_options(shape), side_by_side: 1, "ADD": True}
    check(compiled(backward.accumulate_kernel, architecture, options, tmp_path), architecture)
