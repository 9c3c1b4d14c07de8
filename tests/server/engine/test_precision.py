"""IEEE float32 in exact mode, whatever flags and variables say."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from grpo_server.engine.device import Cpu
from grpo_server.engine.precision import pin, require_ieee
from torch import Tensor


class Rounding(Cpu):
    """Rounds what it multiplies to so many bits of mantissa, as matrix units do."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self._bits = bits

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return self._round(a) @ self._round(b)

    def _round(self, x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2 ** (self._bits + 1)).round() / 2 ** (self._bits + 1), exponent)


def test_this_machine_multiplies_float32_as_float32() -> None:
    require_ieee(Cpu(), {})


@pytest.mark.parametrize("bits", [7, 10], ids=["bfloat16", "TF32 and float16"])
@pytest.mark.parametrize("variable", ["NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"])
def test_a_device_that_rounds_is_refused_by_the_name_of_the_variable(bits: int, variable: str) -> None:
    with pytest.raises(ValueError, match=f"mode: .*{variable}=1; unset {variable}, or use --mode invariant"):
        require_ieee(Rounding(bits), {variable: "1"})


def test_without_a_variable_the_remedy_is_another() -> None:
    with pytest.raises(ValueError, match="update the GPU's driver"):
        require_ieee(Rounding(10), {"NVIDIA_TF32_OVERRIDE": "0"})


def flags() -> list[Any]:
    backends: Any = torch.backends
    return [
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.fp32_precision,
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.conv.fp32_precision,
        backends.cudnn.rnn.fp32_precision,
        backends.cudnn.allow_tf32,
        backends.mkldnn.matmul.fp32_precision,
    ]


IEEE = ["highest", "ieee", False, "ieee", "ieee", False, "ieee"]
LOOSE = [
    "torch.set_float32_matmul_precision('medium')",
    "torch.set_float32_matmul_precision('high')",
    "b.cuda.matmul.allow_tf32 = True",
    "b.cuda.matmul.fp32_precision = 'tf32'",
    "b.cudnn.allow_tf32 = True",
    "b.cudnn.conv.fp32_precision = 'tf32'",
    "b.fp32_precision = 'tf32'",
    "b.mkldnn.matmul.fp32_precision = 'bf16'",
]


@pytest.mark.parametrize("loosen", LOOSE)
@pytest.mark.parametrize("mode", ["exact", "invariant", "fast"])
def test_every_flag_of_torch_is_pinned(loosen: str, mode: Any) -> None:
    try:
        exec(loosen, {"torch": torch, "b": torch.backends})
        pin(mode, "cpu")
        assert flags() == IEEE
    finally:
        pin("exact", "cpu")


def test_the_variable_of_torch_is_pinned() -> None:
    program = (
        "import torch; from grpo_server.engine.precision import pin; pin('exact', 'cpu'); m = torch.backends.cuda.matmul; \
print(torch.get_float32_matmul_precision(), m.allow_tf32)"
    )
    env = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["highest", "False"]


def test_sums_of_halves_are_neither_rounded_nor_split_unless_fast() -> None:
    matmul: Any = torch.backends.cuda.matmul
    names = [
        "allow_bf16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction_split_k",
        "allow_fp16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction_split_k",
        "allow_fp16_accumulation",
    ]
    before = [getattr(matmul, name) for name in names]
    try:
        pin("fast", "cuda")
        assert [getattr(matmul, name) for name in names] == before
        pin("invariant", "cuda")
        assert not any(getattr(matmul, name) for name in names)
    finally:
        matmul.allow_bf16_reduced_precision_reduction = (before[0], before[1])
        matmul.allow_fp16_reduced_precision_reduction = (before[2], before[3])
        matmul.allow_fp16_accumulation = before[4]
