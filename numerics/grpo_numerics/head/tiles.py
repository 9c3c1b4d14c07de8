"""Logits of an LM head, one (row block x vocabulary tile) at a time, in fp32 or better.

The one place that knows how a tile of logits comes about, so that scoring, gradient and every device agree on it:
GEMM, bias, logit scale, soft-cap, temperature, symlog. Nothing here normalises.

A row's logits must not depend on the rows beside it. So vocabulary tiles are cut by the vocabulary alone, and row
blocks are padded to a multiple of `row_multiple` rows (see `alignment`); MKL's reproducible mode (`MKL_CBWR=AVX2,STRICT`)
makes the rest independent of the block's height.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..alignment import row_block
from ..torch_ops import cpu_has_amx
from ..transforms import Normalizer, check_normalizer, check_targets, check_temperature
from .spec import GATHER_FLOATS, ROW_MULTIPLE, VOCAB_MULTIPLE, HeadSpec, Tile, default_tile


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows [start, stop) of the input and what belongs to them, padded with zero rows to M, a multiple of `row_multiple`.

    hidden: (M, D) in its own dtype. targets: (M,) int64. temperature: (M, 1) in the compute dtype, or a number.
    """

    start: int
    stop: int
    hidden: Tensor
    targets: Tensor
    temperature: Tensor | float

    @property
    def rows(self) -> int:
        """Rows without the padding."""
        return self.stop - self.start

    @property
    def height(self) -> int:
        """M, rows with the padding."""
        return len(self.hidden)


class LogitTiles:
    """The (R, V) logits of a head, cut into tiles.

    hidden: (R, D). weight: (V, D). targets: (R,) ids. temperature: a number or (R,). tile: None for the default.
    checked: ids and temperature are known to be possible, and on a GPU nothing is read, and waited for, to find out.
    Raises ValueError when shapes, ids, temperature or normalizer cannot be.
    """

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
        _check_shapes(hidden, weight, spec, temperature)
        if not checked:
            check_targets(targets, weight.shape[0], hidden.shape[:1])
            check_temperature(temperature)
        check_normalizer(normalizer)
        self.weight = weight
        self.spec = spec
        self.normalizer: Normalizer = normalizer
        self.tile = default_tile(weight.shape[1]) if tile is None else Tile(*tile)
        if min(self.tile) < 1:
            raise ValueError(f"tile must hold at least one row and one token, got {tuple(self.tile)}")
        self.dtype = torch.float64 if torch.float64 in (hidden.dtype, weight.dtype) else torch.float32
        self.bias = None if spec.bias is None else spec.bias.detach().to(self.dtype)
        self._buffers: dict[str, Tensor] = {}
        # CUDA multiplies halves exactly and sums in fp32 by itself: nothing to upcast there.
        self._keep_half = weight.is_cuda and hidden.dtype == weight.dtype and weight.dtype.itemsize == 2
        temperatures = self._temperatures(temperature, checked)
        self.row_multiple = row_multiple(weight.device)
        rows = max(1, self.tile.rows // self.row_multiple) * self.row_multiple
        self.blocks = [
            self._block(hidden, targets.long(), temperatures, slice(start, min(start + rows, len(hidden))))
            for start in range(0, max(len(hidden), 1), rows)
        ]

    @property
    def vocab(self) -> int:
        """V."""
        return self.weight.shape[0]

    def columns(self) -> Iterator[slice]:
        """The vocabulary tiles, of even width: no sliver at the end, for which a GEMM is slow."""
        tiles = -(-self.vocab // self.tile.vocab)
        width = _round_up(-(-self.vocab // tiles), VOCAB_MULTIPLE)
        for start in range(0, self.vocab, width):
            yield slice(start, min(start + width, self.vocab))

    def weight_rows(self, columns: slice) -> Tensor:
        """(v, D): the weight of these tokens, ready for `products`."""
        rows = self.weight[columns]
        return rows if self._keep_half else self.upcast("weight", rows)

    def products(self, block: RowBlock, weight_rows: Tensor) -> Tensor:
        """(M, v) hidden times weight in the compute dtype, in scratch that the next call overwrites."""
        if self._keep_half:
            return torch.mm(block.hidden, weight_rows.t(), out_dtype=torch.float32)
        out = self.scratch("logits", block.height, len(weight_rows))
        with exact_half_products(block.hidden, self.weight):
            return torch.mm(self.upcast("hidden", block.hidden), weight_rows.t(), out=out)

    def target_products(self, block: RowBlock) -> Tensor:
        """(M, 1) hidden times the weight of each row's own target, summed in float64 and rounded once."""
        rows = max(ROW_MULTIPLE, GATHER_FLOATS // self.weight.shape[1])
        parts = [
            (self.weight[targets].double() * hidden.double()).sum(-1, keepdim=True)
            for targets, hidden in zip(block.targets.split(rows), block.hidden.split(rows), strict=True)
        ]
        return torch.cat(parts).to(self.dtype)

    def transform_(self, products: Tensor, bias: Tensor | None, temperature: Tensor | float) -> Tensor:
        """Products (M, v) to the logits whose softmax is wanted, in place. bias: whatever broadcasts to (M, v)."""
        z = products
        if bias is not None:
            z.add_(bias)
        if self.spec.logit_scale != 1.0:
            z.mul_(self.spec.logit_scale)
        if self.spec.softcap is not None:
            z.div_(self.spec.softcap).tanh_().mul_(self.spec.softcap)
        if isinstance(temperature, Tensor) or temperature != 1.0:
            z.div_(temperature)
        if self.normalizer == "stablemax":
            magnitude = torch.abs(z, out=self.scratch("spare", *z.shape)).log1p_()
            torch.copysign(magnitude, z, out=z)
        return z

    def slope(self, products: Tensor, bias: Tensor | None, temperature: Tensor | float) -> Tensor | float:
        """Derivative of `transform_` at these products, left as they are: a number, (M, 1) or (M, v)."""
        factor = self.spec.logit_scale / temperature
        if self.spec.softcap is None and self.normalizer == "softmax":
            return factor
        z = products * self.spec.logit_scale if bias is None else (products + bias).mul_(self.spec.logit_scale)
        flattening: Tensor | float = 1.0
        if self.spec.softcap is not None:
            tanh = z.div_(self.spec.softcap).tanh_()
            flattening = 1.0 - tanh.square()
            z = tanh * self.spec.softcap
        if self.normalizer == "stablemax":
            flattening = flattening / z.div_(temperature).abs_().add_(1.0)
        return flattening * factor

    def logits(self, block: RowBlock, columns: slice, weight_rows: Tensor) -> Tensor:
        """(M, v) logits of one tile, in scratch that the next call overwrites."""
        bias = None if self.bias is None else self.bias[columns]
        return self.transform_(self.products(block, weight_rows), bias, block.temperature)

    def target_logits(self, block: RowBlock) -> Tensor:
        """(M, 1) logit of each row's own target."""
        bias = None if self.bias is None else self.bias[block.targets][:, None]
        return self.transform_(self.target_products(block), bias, block.temperature)

    def scratch(self, name: str, rows: int, columns: int) -> Tensor:
        """A contiguous (rows, columns) view of the buffer of that name; what it held is lost."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < rows * columns:
            buffer = torch.empty(rows * columns, dtype=self.dtype, device=self.weight.device)
            self._buffers[name] = buffer
        return buffer[: rows * columns].view(rows, columns)

    def upcast(self, name: str, x: Tensor) -> Tensor:
        """x (rows, D) in the compute dtype: itself where it is so stored, else a copy in scratch."""
        return x if x.dtype == self.dtype else self.scratch(name, *x.shape).copy_(x)

    def _temperatures(self, temperature: float | Tensor, checked: bool) -> Tensor | float:
        if not isinstance(temperature, Tensor):
            return float(temperature)
        if not checked and bool((temperature == 1.0).all()):
            return 1.0  # dividing by it would change no bit
        return temperature.to(self.weight.device, self.dtype).reshape(-1, 1)

    def _block(self, hidden: Tensor, targets: Tensor, temperatures: Tensor | float, rows: slice) -> RowBlock:
        height = _round_up(max(rows.stop - rows.start, 1), self.row_multiple)
        return RowBlock(
            rows.start,
            rows.stop,
            padded(hidden[rows], height),
            padded(targets[rows], height),
            padded(temperatures[rows], height, 1.0) if isinstance(temperatures, Tensor) else temperatures,
        )


def row_multiple(device: torch.device) -> int:
    """Rows by which a block may grow, in the thread that computes."""
    return row_block(torch.get_num_threads(), ROW_MULTIPLE) if device.type == "cpu" else ROW_MULTIPLE


def padded(x: Tensor, height: int, value: float = 0.0) -> Tensor:
    """x (rows, ...) with rows of `value` below it, (height, ...); x itself where it is that high."""
    if len(x) == height:
        return x
    return torch.cat([x, x.new_full((height - len(x), *x.shape[1:]), value)])


def put_where_inside(z: Tensor, local: Tensor, values: Tensor | float) -> None:
    """z (M, v)[row, local (M, 1)] = values (M, 1), where local lies inside; without asking a GPU which rows those are."""
    place = local.clamp(0, z.shape[1] - 1)
    inside = (local >= 0) & (local < z.shape[1])
    z.scatter_(1, place, torch.where(inside, values, z.gather(1, place)))


@contextlib.contextmanager
def exact_half_products(hidden: Tensor, weight: Tensor) -> Generator[None]:
    """Let AMX multiply fp32 copies of bf16 values, at its bf16 speed.

    A bf16 value survives the way to fp32 and back, and AMX sums in fp32: the products are those of the fp32 GEMM, only
    faster. So the switch is thrown where both operands were bf16 and the CPU has AMX, and nowhere else. It is global to
    the process while it is on: score on one thread.
    """
    exact = hidden.dtype == weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    if not exact or not cpu_has_amx():
        yield
        return
    matmul = cast(Any, torch.backends.mkldnn).matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _check_shapes(hidden: Tensor, weight: Tensor, spec: HeadSpec, temperature: float | Tensor) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not weight.numel():
        raise ValueError(f"hidden must be (R, D), weight (V, D): got {tuple(hidden.shape)} and {tuple(weight.shape)}")
    if not hidden.is_floating_point() or not weight.is_floating_point():
        raise ValueError(f"hidden and weight must be floating point, got {hidden.dtype} and {weight.dtype}")
    if spec.bias is not None and spec.bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {tuple(weight.shape[:1])}, got {tuple(spec.bias.shape)}")
    if isinstance(temperature, Tensor) and temperature.shape != hidden.shape[:1]:
        raise ValueError(f"temperature must be a number or ({len(hidden)},), got {tuple(temperature.shape)}")


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
