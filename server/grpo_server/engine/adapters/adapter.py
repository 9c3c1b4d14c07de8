"""What is held of an adapter beside its base."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..anatomy import Anatomy
from ..fingerprint import tensor_digest
from .products import InOne, Pair, Products


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """pairs: by the name of the layer. embedding: the pair of the input embedding. table: the input embedding of its own, as a
    module. head: the base's parts with the output head of its own. products: how its pairs are multiplied. All in the base's
    type, on the devices of the layers that they are for. Each adapter is itself and no other."""

    pairs: Mapping[str, Pair]
    embedding: Pair | None = None
    table: nn.Module | None = None
    head: Anatomy | None = None
    products: Products = field(default_factory=InOne)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is held, by name."""
        held: dict[str, Tensor] = {}
        for name, pair in (*self.pairs.items(), *(() if self.embedding is None else [("embedding", self.embedding)])):
            held[f"{name}.down"], held[f"{name}.up"] = pair.down, pair.up
        if self.table is not None:
            held |= {f"table.{name}": p.detach() for name, p in self.table.named_parameters()}
        if self.head is not None:
            held["head.weight"] = self.head.weight
            if self.head.spec.bias is not None:
                held["head.bias"] = self.head.spec.bias
        return held

    @property
    def nbytes(self) -> int:
        """Memory that it takes beside the base."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def flops(self) -> float:
        """Operations of one token, beside the base's."""
        looked_up = 0 if self.embedding is None else self.embedding.up.numel()
        return 2.0 * (looked_up + sum(pair.down.numel() + pair.up.numel() for pair in self.pairs.values()))

    def digest(self) -> bytes:
        """SHA-256 over names, types, shapes, bytes and scales."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(tensor_digest(name, tensor))
        pairs = [*self.pairs.items(), *(() if self.embedding is None else [("embedding", self.embedding)])]
        digest.update(repr(sorted((name, pair.scale) for name, pair in pairs)).encode())
        return digest.digest()


def in_base_type(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of its own, in the type of a base's tensor and on its device."""
    dtype = like.dtype if like.is_floating_point() else torch.bfloat16
    return tensor.to(like.device, dtype, copy=True).contiguous()
