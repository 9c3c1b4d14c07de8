"""Which way a fixed product takes: the kernel where it runs, slabs elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from .slabs import CPU_SLAB, GPU_SLAB, linear_in_slabs

_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
_OLDEST = (8, 0)  # compute capability from which bf16 matrix units and asynchronous copies exist


def fixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` whose rows keep their bits in any company. x: (..., K), weight: (N, K), bias: (N,)."""
    if x.dtype == weight.dtype and runs_kernel(weight):
        from .kernel import linear_by_kernel

        return linear_by_kernel(x, weight, bias)
    return linear_in_slabs(x, weight, bias, rows=CPU_SLAB if weight.device.type == "cpu" else GPU_SLAB)


def runs_kernel(weight: Tensor) -> bool:
    """Whether the kernel takes this weight: Ampere or newer, Triton installed, at most 32 bits, contiguous. On a CPU under
    TRITON_INTERPRET=1, a program at a time."""
    if weight.dtype not in _DTYPES or not weight.is_contiguous() or not _has_triton():
        return False
    if not weight.is_cuda:
        return weight.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return torch.version.cuda is not None and torch.cuda.get_device_capability(weight.device) >= _OLDEST


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
