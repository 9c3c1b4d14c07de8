"""Where Triton kernels can run at all; whether one takes a tensor is for each to say.

Under `TRITON_INTERPRET=1` they run on CPU tensors, one program after the other: for tests and for looking inside, at a
thousandth of the speed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil

import torch
from torch import Tensor

OLDEST = (8, 0)  # compute capability from which bf16 matrix units and asynchronous copies exist


@functools.cache
def lacking() -> str:
    """What is missing for kernels to run, and how to get it; "" if nothing is."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    # which compiles its launchers on the machine that launches
    if not (is_interpreting() or "CC" in os.environ or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler (apt install gcc libc6-dev, or name one in CC)"
    return ""


def is_interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def interpreted(t: Tensor) -> bool:
    """Whether kernels run on this CPU tensor. Not in bfloat16: NumPy has none, and the interpreter multiplies its bits as if
    they were integers."""
    return t.device.type == "cpu" and is_interpreting() and t.dtype != torch.bfloat16
