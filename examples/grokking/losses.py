"""The losses that are compared: the same logits, the same targets, four ways to a number.

softmax          torch's cross-entropy: exactly 0, without gradient, once the target leads by about 17 (fp32)
stablemax        the same under StableMax, whose tail is polynomial
collapse-free    softmax's loss with the leading class taken out of the sum: never rounds to 0
collapse-free-stablemax    both
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from grpo_numerics import collapse_free_cross_entropy, stablemax_cross_entropy
from grpo_training.collapse import CollapseMonitor
from torch import Tensor

LossName = Literal["softmax", "stablemax", "collapse-free", "collapse-free-stablemax"]
Terms = Callable[[Tensor, Tensor], Tensor]

TERMS: MappingProxyType[str, Terms] = MappingProxyType(
    {
        "softmax": partial(F.cross_entropy, reduction="none"),
        "stablemax": partial(stablemax_cross_entropy, reduction="none"),
        "collapse-free": partial(collapse_free_cross_entropy, reduction="none"),
        "collapse-free-stablemax": partial(collapse_free_cross_entropy, reduction="none", normalizer="stablemax"),
    }
)


def loss_terms(name: LossName, logits: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """One term a row, (N,), computed in `dtype` whatever the network runs in."""
    return TERMS[name](logits.to(dtype), targets)


@torch.no_grad()
def observe(monitor: CollapseMonitor, logits: Tensor, terms: Tensor) -> dict[str, float]:
    """The monitor's figures, of the loss's own terms: the monitor knows two losses by itself, we compare more."""
    monitor.saw_terms(terms)
    return {**monitor.figures(), "max_logit": float(logits.max())}
