"""Which way a fixed product takes: the kernel where it runs, slabs elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton_support import OLDEST, interpreted, lacking
from .slabs import CPU_SLAB, GPU_SLAB, linear_in_slabs

_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})


def fixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` whose rows keep their bits in any company. x: (..., K), weight: (N, K), bias: (N,)."""
    if x.dtype == weight.dtype and runs_kernel(weight):
        from .kernel import linear_by_kernel

        return linear_by_kernel(x, weight, bias)
    return linear_in_slabs(x, weight, bias, rows=CPU_SLAB if weight.device.type == "cpu" else GPU_SLAB)


def runs_kernel(weight: Tensor) -> bool:
    """Whether the kernel takes this weight: Ampere or newer, Triton ready, at most 32 bits, contiguous."""
    if weight.dtype not in _DTYPES or not weight.is_contiguous() or lacking():
        return False
    if not weight.is_cuda:
        return interpreted(weight)
    return torch.version.cuda is not None and torch.cuda.get_device_capability(weight.device) >= OLDEST
