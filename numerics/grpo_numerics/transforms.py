"""What happens to logits before they are normalised: upcast, temperature, symlog; and what may be asked.

A distribution is named by a `Normalizer`; under each it is the softmax of transformed logits, so every function of
this package transforms first and is a softmax from there on.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalizer = Literal["softmax", "stablemax"]


def upcast(x: Tensor) -> Tensor:
    """fp16, bf16 and integers to fp32; fp32 and fp64 stay. The dtype that this package computes in."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def widened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a wider dtype. A gradient outside the range of x's own comes back as its largest number, not as infinity.

    For functions that grow exponentially: fp16 ends at 65504, which e^d passes at d = 11.1, fp32 at d = 88.7. NaN stays
    NaN.
    """
    wide = x.to(dtype)
    if wide is not x and wide.requires_grad:
        largest = torch.finfo(x.dtype).max
        wide.register_hook(lambda grad: grad.clamp(-largest, largest))
    return wide


def symlog(x: Tensor) -> Tensor:
    """sign(x) log1p|x|, elementwise; fp32, or fp64 for fp64 input.

    The derivative is 1 / (1 + |x|) everywhere, also at 0, +-1 and +-inf: each half sees only its own sign, so that no
    branch that is not taken divides by zero, which `where(x >= 0, x + 1, 1 / (1 - x))` does at exactly x = 1.
    """
    x = upcast(x)
    positive = torch.where(x >= 0, x, 0.0)
    negative = torch.where(x < 0, -x, 0.0)
    return torch.where(x.isnan(), x, torch.log1p(positive) - torch.log1p(negative))


def without_ignored(logits: Tensor, target: Tensor, ignore_index: int, classes: int) -> Tensor:
    """Logits with the positions whose target is `ignore_index` set to 0, `classes` being the class dimension.

    Such a position has no loss, but one without a distribution (a NaN, nothing but -inf) would still have a NaN for its
    gradient, 0 times NaN, and spread it to the weights. Shapes and targets that do not fit pass unchanged: what
    computes the loss says what is wrong with them.
    """
    if target.is_floating_point() or target.shape != logits.shape[:classes] + logits.shape[classes + 1 :]:
        return logits
    return logits.masked_fill((target == ignore_index).unsqueeze(classes), 0.0)


def normalized_logits(logits: Tensor, temperature: float | Tensor, normalizer: Normalizer) -> Tensor:
    """The (..., V) logits whose *softmax* is the distribution asked for: over temperature, symlog under StableMax."""
    z = upcast(logits)
    check_temperature(temperature)
    if isinstance(temperature, Tensor):
        z = z / temperature.to(z.dtype).unsqueeze(-1)
    elif temperature != 1.0:
        z = z / temperature
    check_normalizer(normalizer)
    return symlog(z) if normalizer == "stablemax" else z


def check_temperature(temperature: float | Tensor) -> None:
    """ValueError unless every temperature is finite and > 0."""
    values = temperature if isinstance(temperature, Tensor) else torch.tensor(float(temperature), dtype=torch.float64)
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(f"temperature must be finite and > 0, got {temperature}: for greedy scores use rank or top_k")


def check_normalizer(normalizer: str) -> None:
    """ValueError unless the name is known."""
    if normalizer not in ("softmax", "stablemax"):
        raise ValueError(f"normalizer must be 'softmax' or 'stablemax', got {normalizer!r}")


def check_targets(targets: Tensor, vocab: int, shape: torch.Size, name: str = "targets", *, lowest: int = 0) -> None:
    """ValueError, in terms of `name`, unless they are integer ids from `lowest` to the vocabulary's end, in this shape."""
    if targets.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(targets.shape)}")
    if targets.is_floating_point() or targets.dtype is torch.bool:
        raise ValueError(f"{name} must be integer ids, got {targets.dtype}")
    if targets.numel() and not lowest <= int(targets.min()) <= int(targets.max()) < vocab:
        raise ValueError(
            f"{name} must lie in [{lowest}, {vocab}), got {int(targets.min())} to {int(targets.max())}: "
            "replace padding by any valid id and mask its score"
        )
