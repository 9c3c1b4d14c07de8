"""The two small matrices of a layer, and the ways of multiplying with them.

Rounding, in the base's type: x @ down^T is rounded once, and once more with the layer's own product when both are summed, in
fp32 inside the product. In bfloat16 a layer's output so has two roundings of its own size (peft's has three), and one of its
adapter's. In float32 it is peft's up to the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from grpo_numerics.products import fixed_linear
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True, slots=True)
class Pair:
    """What a layer gets beside its own product: scale * (x @ down^T) @ up^T. down (r, K), up (N, r); of an embedding, whose
    inputs are ids, down is (V, r), one row a token."""

    down: Tensor
    up: Tensor
    scale: float


class Products(Protocol):
    """The two products of a pair. low (H, r), of which `rows` rows count; out (H, N)."""

    def down(self, x: Tensor, pair: Pair) -> Tensor: ...

    def up(self, out: Tensor, low: Tensor, pair: Pair, rows: int) -> None: ...


class InOne:
    """Added inside the second product, in fp32: one rounding."""

    def down(self, x: Tensor, pair: Pair) -> Tensor:
        return linear(x, pair.down)

    def up(self, out: Tensor, low: Tensor, pair: Pair, rows: int) -> None:
        low[rows:] = 0
        out.addmm_(low, pair.up.t(), alpha=pair.scale)


class AtFixedShape:
    """For devices whose own products change a row's bits with the number of rows."""

    def down(self, x: Tensor, pair: Pair) -> Tensor:
        return fixed_linear(x, pair.down)

    def up(self, out: Tensor, low: Tensor, pair: Pair, rows: int) -> None:
        out[:rows] += fixed_linear(low[:rows], pair.up).mul_(pair.scale)
