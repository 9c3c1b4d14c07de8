"""What a product of matrices may be rounded to: pinned, whatever flags and variables say, and shown by a product.

TF32 can be turned on from many sides: torch's `float32_matmul_precision`, `allow_tf32` and `fp32_precision` of several
backends, `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`, and NVIDIA's `NVIDIA_TF32_OVERRIDE`, over which torch has no power. It keeps 10
bits of 23: log-probs are then off by hundredths, and rotary angles by whole radians.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch

from .config import Mode
from .device import Device
from .environment import TF32_OVERRIDE

# One bit below what TF32 keeps, and below bfloat16 and float16 as well.
_FINE = 2.0**-12
_SIDE, _TERMS = 256, 512
# Roundings of a float32 sum of so many terms, each as large as the last: n u / (1 - n u) with u = 2^-24 (Higham, "Accuracy and
# Stability of Numerical Algorithms", section 3.1). TF32's error on the product below is 16 times as large.
_BOUND = _TERMS * 2.0**-24 * 1.01


def pin(mode: Mode, device_type: str) -> None:
    """Float32 products in IEEE float32 in every mode, for rotary angles and norms are float32 in all; and unless `fast`, sums
    of halves in float32 and in one piece. Microseconds: called before every batch, for any library may set these flags."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    cudnn = cast(Any, torch.backends.cudnn)
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee"
    if device_type != "cuda" or mode == "fast":
        return
    matmul = cast(Any, torch.backends.cuda.matmul)
    # neither rounded in between nor split over blocks
    matmul.allow_bf16_reduced_precision_reduction = (False, False)
    matmul.allow_fp16_reduced_precision_reduction = (False, False)
    matmul.allow_fp16_accumulation = False


def require_ieee(device: Device, env: Mapping[str, str] = os.environ) -> None:
    """Raise ValueError, naming the variable that is likely at fault, unless the device multiplies float32 as float32."""
    error = _relative_error(device)
    if error <= _BOUND:
        return
    at_fault = [name for name in (TF32_OVERRIDE, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE") if env.get(name, "0") != "0"]
    why = (
        f"because of {' and '.join(f'{name}={env[name]}' for name in at_fault)}" if at_fault else "for no known reason"
    )
    remedy = f"unset {' and '.join(at_fault)}" if at_fault else "update the GPU's driver and torch"
    raise ValueError(
        f"mode: exact needs float32 products, but this device rounds them (relative error {error:.1e} against float64), {why}; "
        f"{remedy}, or use --mode invariant"
    )


def _relative_error(device: Device) -> float:
    """Largest relative error of a product against float64, over numbers that narrower formats cannot hold."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        (1.0 + _FINE) * torch.randint(-2, 3, shape, generator=generator).float().exp2()
        for shape in ((_SIDE, _TERMS), (_TERMS, _SIDE))
    )
    truth = a.double() @ b.double()
    ours = device.product(a, b).double().cpu()
    return float(((ours - truth).abs() / truth).max())
