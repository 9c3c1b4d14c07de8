"""Liger-Kernel's functions as `fused_layers.Kernels`. Importing this needs liger-kernel: pip install 'grpo-refserver[gpu]'.

Its classes are not used: they would be put in the place of transformers' for the whole process.
"""

from __future__ import annotations

from typing import Any, cast

from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction  # pyright: ignore[reportMissingImports]
from liger_kernel.transformers.rope import liger_rotary_pos_emb  # pyright: ignore[reportMissingImports]
from torch import Tensor

from .fused_layers import Casting


class LigerKernels:
    """A program a row, never a block of rows, so that the bits of a row do not depend on how many there are."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float, casting: Casting) -> Tensor:
        """Out of place: the residual stream is read again."""
        return cast(Any, LigerRMSNormFunction).apply(x, weight, eps, offset, casting, False, True)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up."""
        return cast(Any, LigerSiLUMulFunction).apply(gate, up)

    def rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        """As transformers calls it."""
        return cast(Any, liger_rotary_pos_emb)(q, k, cos, sin, *more)
