"""The matrix products of a model's layers: which there are, whether their rows keep their bits, and what to do where not.

A product chooses its kernel by the number of its rows, so that a row may change its bits when others join it. Each kind of
product that the model makes, by outputs, inputs, bias and type, is tried at every number of rows that a batch can have. Those
that change a bit are replaced by `grpo_numerics.products`, whose shape is fixed.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from grpo_numerics.products import fixed_linear
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from .heights import spread

log = logging.getLogger(__name__)

# An expert sees as many rows as were routed to it: any number.
_ANY_ROWS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 33, 63)


@dataclass(slots=True)
class Product:
    """One kind of product. run: (1, M, K) -> (1, M, N). modules: the layers that make it. any_rows: how many rows it has is up
    to what is in the batch, not to the stream's length. replaceable: whether `fix` knows these layers."""

    name: str
    run: Callable[[Tensor], Tensor]
    inputs: int
    like: Tensor
    any_rows: bool = False
    replaceable: bool = False
    modules: list[nn.Module] = field(default_factory=lambda: [])


def products_of(modules: Iterable[nn.Module]) -> list[Product]:
    """Every kind of product that these make themselves, as they lie on this process."""
    kinds: dict[object, Product] = {}
    for module in modules:
        if isinstance(module, nn.Embedding):
            continue
        for found in _of_module(module):
            key = (type(module), found.name, found.like.shape, found.like.dtype, found.like.device)
            kinds.setdefault(key, found).modules.append(module)
    return list(kinds.values())


def _of_module(module: nn.Module) -> list[Product]:
    own = dict(module.named_parameters(recurse=False))
    bias = " with bias" if own.get("bias") is not None else ""
    if isinstance(module, nn.Linear | Conv1D) and not any(isinstance(p, DTensor) for p in own.values()):
        inputs, outputs = _sides(module)
        known = type(module) in (nn.Linear, Conv1D) and module.weight.is_floating_point()
        return [Product(f"{inputs} to {outputs}{bias}", module, inputs, module.weight, replaceable=known)]
    # a weight that its module multiplies with in a way of its own, or a slice of one
    found: list[Product] = []
    for parameter in own.values():
        local = (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()
        if not local.is_floating_point() or local.dim() not in (2, 3) or not local.numel():
            continue
        matrix = local if local.dim() == 2 else local[0]
        run = functools.partial(_times, matrix)
        name = f"{matrix.shape[1]} to {matrix.shape[0]} in {type(module).__name__}"
        found.append(Product(name, run, matrix.shape[1], matrix, any_rows=local.dim() == 3))
    return found


def _sides(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """Inputs and outputs."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.weight.shape
    return inputs, outputs


def _times(weight: Tensor, x: Tensor) -> Tensor:
    return linear(x, weight)


@torch.inference_mode()
def changes_bits_at(product: Product, heights: Sequence[int]) -> int | None:
    """The first of these ascending numbers of rows at which a row has other bits than at the largest; None: it keeps them.

    At each height the rows are taken from another place, so that they stand elsewhere in the product.
    """
    top = heights[-1]
    generator = torch.Generator().manual_seed(top)
    rows = torch.randn(top, product.inputs, generator=generator)
    x = rows.to(product.like.device, _dtype_of(product))
    whole = product.run(x[None])[0]
    for height in [*(_ANY_ROWS if product.any_rows else ()), *heights[:-1]]:
        if height > top:
            continue
        start = int(torch.randint(top - height + 1, (), generator=generator))
        part = x[start : start + height].clone()  # memory of its own, as a batch has
        if not torch.equal(product.run(part[None])[0], whole[start : start + height]):
            return height
    return None


def _dtype_of(product: Product) -> torch.dtype:
    """Of what flows in: a quantised weight is of another type than its inputs."""
    return product.like.dtype if product.like.is_floating_point() else torch.bfloat16


def settle(products: Sequence[Product], heights: Sequence[int], *, trusted: bool) -> str | None:
    """Make every product keep the bits of its rows at these heights, by a fixed one where its own does not.

    trusted: the library is known to keep them, so that some of the heights will do. Returns what stands in the way, or None.
    """
    some = spread(heights)
    fixed: list[str] = []
    for product in products:
        height = changes_bits_at(product, some if trusted and not product.any_rows else heights)
        if height is None:
            continue
        if not product.replaceable:
            return f"the product {product.name} changes the bits of a row at {height} rows"
        if (problem := _fix(product, some)) is not None:
            return problem
        fixed.append(product.name)
    if fixed:
        log.info("products of a fixed shape stand in for those that depend on the batch: %s", ", ".join(fixed))
    return None


def _fix(product: Product, heights: Sequence[int]) -> str | None:
    """Replace the layers' own product, if the other one is right and keeps its bits."""
    layer = product.modules[0]
    substitute = Product(product.name, functools.partial(_fixed, layer), product.inputs, product.like)
    if not _same_numbers(product, substitute):
        return f"the fixed product {product.name} does not give the layer's own numbers"
    if (height := changes_bits_at(substitute, heights)) is not None:
        return f"the fixed product {product.name} changes the bits of a row at {height} rows"
    for module in product.modules:
        # accelerate, which moves a layer's inputs to its device, keeps the layer's own forward under this name
        name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
        setattr(module, name, functools.partial(_fixed, module))
    return None


def _fixed(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer computes, at a fixed shape."""
    assert isinstance(layer, nn.Linear | Conv1D)
    if isinstance(layer, nn.Linear):
        return fixed_linear(x, layer.weight, layer.bias)
    return fixed_linear(x, layer.weight.t(), layer.bias)


@torch.inference_mode()
def _same_numbers(product: Product, substitute: Product) -> bool:
    """Whether both give the same up to rounding: of each output once, and of the fp32 sum."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 48, product.inputs, generator=generator).to(product.like)
    ours, theirs = substitute.run(x).double(), product.run(x).double()
    eps = torch.finfo(product.like.dtype).eps
    allowed = 2 * eps * max(1.0, math.sqrt(product.inputs) * 2.0**-23 / eps)
    return bool(torch.linalg.vector_norm(ours - theirs) <= allowed * torch.linalg.vector_norm(theirs))
