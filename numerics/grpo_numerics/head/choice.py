"""Which code computes a head: Triton kernels where they run and fit, torch tiles everywhere else.

Both give the same figures up to rounding, so nobody has to choose. A head on a GPU that has to do with torch tiles costs
several times as much: the log says so, and why, once.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from ..triton_support import OLDEST, interpreted, lacking

log = logging.getLogger(__name__)

_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})


def on_triton(hidden: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take this head: Ampere or newer, Triton installed, one dtype of at most 32 bits, contiguous."""
    if not weight.is_cuda and not interpreted(weight):
        return False
    reason = _hindrance(hidden, weight)
    if reason and weight.is_cuda:
        _tell(reason)
    return not reason


def _hindrance(hidden: Tensor, weight: Tensor) -> str:
    """Why the kernels cannot take this head, "" if they can."""
    if lack := lacking():
        return lack
    if hidden.dtype != weight.dtype or hidden.device != weight.device:
        return (
            f"hidden states ({hidden.dtype} on {hidden.device}) and weight ({weight.dtype} on {weight.device}) are not of "
            "one dtype on one device"
        )
    if weight.dtype not in _DTYPES:
        return f"{weight.dtype} is none of theirs (bfloat16, float16, float32)"
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    if weight.is_cuda and torch.version.cuda is None:
        return "this torch is not built for CUDA"
    if weight.is_cuda and (capability := torch.cuda.get_device_capability(weight.device)) < OLDEST:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and they need 8.0"
    return ""


@functools.cache
def _tell(reason: str) -> None:
    """Once for each reason: a head is run for every batch."""
    log.warning("the head runs on torch tiles, not on the Triton kernels: %s", reason)
