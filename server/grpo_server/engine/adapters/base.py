"""What adapters stand on: one loaded base, the way in which it is computed, and where in it they are put."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..anatomy import Anatomy
from ..bits import Ground
from ..config import BatchLimits, EngineConfig
from ..contract import Hosted
from ..device import Device
from ..flops import Flops
from ..head_pass import Head
from ..own_memory import Tenants
from ..prepared import Forward
from ..pricing import Price


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """hosted: the base as a reference. attention: implementation of the model itself. turn: held for a batch. price: of its own
    batches. tenants: who holds the weights. known: why a kind of product keeps no bits, or None, as far as it was tried. flops:
    of the base."""

    config: EngineConfig
    model: PreTrainedModel
    parts: Anatomy
    hosted: Hosted
    forward: Forward
    head: Head
    ground: Ground
    attention: str
    device: Device
    limits: BatchLimits
    price: Price
    turn: threading.RLock
    tenants: Tenants
    known: dict[object, str | None]
    flops: Flops
    modules: dict[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", dict(self.model.named_modules()))

    @property
    def embedding(self) -> nn.Module:
        """Of what goes in."""
        return self.model.get_input_embeddings()

    @property
    def compiled(self) -> list[nn.Module]:
        """Layers that run as a compiler made them of the base alone."""
        return [m for m in self.parts.body.modules() if hasattr(_own_forward(m), "_torchdynamo_orig_callable")]


def _own_forward(module: nn.Module) -> Any:
    return vars(module).get("forward")
