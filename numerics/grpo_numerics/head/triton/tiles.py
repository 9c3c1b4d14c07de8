"""The kernels as tensors see them: the same tiles as `head.tiles`, computed by Triton, and how a kernel is launched.

Validation and padding are inherited. Scoring is in `scoring`, the gradient in `gradient`: grids, scratch and arguments.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ...transforms import Normalizer
from ..spec import ROW_MULTIPLE, HeadSpec, Tile
from ..tiles import LogitTiles, RowBlock
from . import forward
from .blocks import ROWS, SLICE, Blocks


class TritonTiles(LogitTiles):
    """`LogitTiles` of a head that `head.choice.on_triton` takes. tile: checked, but the kernels choose their own."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        spec: HeadSpec,
        temperature: float | Tensor,
        normalizer: Normalizer,
        tile: Tile | tuple[int, int] | None,
        checked: bool = False,
    ) -> None:
        if tile is not None and min(tile) < 1:
            raise ValueError(f"tile must hold at least one row and one token, got {tuple(tile)}")
        own = Tile(ROWS, SLICE)
        asked = {"spec": spec, "temperature": temperature, "normalizer": normalizer, "checked": checked}
        super().__init__(hidden, weight, targets, **cast(Any, asked), tile=own)
        self.capability = torch.cuda.get_device_capability(weight.device) if weight.is_cuda else (8, 0)
        self.elaborate = spec.softcap is not None or normalizer == "stablemax"

    def target_products(self, block: RowBlock) -> Tensor:
        """(M, 1) as the base class has them: summed in float64, rounded once."""
        out = block.hidden.new_empty(block.height, dtype=torch.float64)
        launch(
            forward.target_products_kernel,
            (block.height // ROW_MULTIPLE,),
            block.hidden.contiguous(),
            self.weight,
            block.targets,
            out,
            self.weight.shape[1],
            BLOCK_M=ROW_MULTIPLE,
            BLOCK_K=128,
        )
        return out[:, None].to(self.dtype)

    def head_options(self) -> dict[str, Any]:
        """What the model does to its logits, as the kernels take it; None where it does nothing."""
        return {
            "logit_scale": None if self.spec.logit_scale == 1.0 else self.spec.logit_scale,
            "softcap": self.spec.softcap,
            "STABLEMAX": self.normalizer == "stablemax",
        }


def temperature_of(block: RowBlock) -> Tensor | None:
    """(M,) fp32, or None where dividing would change nothing."""
    if isinstance(block.temperature, Tensor):
        return block.temperature[:, 0].contiguous()
    if block.temperature == 1.0:
        return None
    return torch.full((block.height,), block.temperature, dtype=torch.float32, device=block.hidden.device)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float | None, **options: Any) -> None:
    """Run a kernel on the device of its first argument, a tensor.

    Multiply-adds fused: rounded once instead of twice, and said here because Triton's default is about to change.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device_of(first):
        kernel[grid](*arguments, enable_fp_fusion=True, **options)


def product_options(blocks: Blocks, dim: int) -> dict[str, Any]:
    """Shape and options of the product of hidden and weight."""
    return {"EVEN_K": dim % blocks.k == 0, **block_options(blocks)}


def block_options(blocks: Blocks) -> dict[str, Any]:
    """Shape and options of any product."""
    return {
        "BLOCK_M": blocks.m,
        "BLOCK_N": blocks.n,
        "BLOCK_K": blocks.k,
        "PRECISION": blocks.precision,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
