"""Which code computes a head: Triton kernels where they run and fit, torch tiles everywhere else.

Both give the same figures up to rounding, so nobody has to choose. Under `TRITON_INTERPRET=1` the kernels run on CPU
tensors, one program after the other: for tests and for looking inside, at a thousandth of the speed.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
_OLDEST = (8, 0)  # compute capability from which bf16 matrix units and asynchronous copies exist


def on_triton(hidden: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take this head: Ampere or newer, Triton installed, one dtype of at most 32 bits, contiguous."""
    alike = hidden.dtype == weight.dtype and hidden.device == weight.device
    if not alike or weight.dtype not in _DTYPES or not weight.is_contiguous() or not _has_triton():
        return False
    if not weight.is_cuda:
        return os.environ.get("TRITON_INTERPRET") == "1"
    return torch.version.cuda is not None and torch.cuda.get_device_capability(weight.device) >= _OLDEST


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
