"""Advantages: what each completion earned beside its group.

In float64 and from differences to one member of the group, so that equal rewards have exactly no advantage: the mean of
eight times 0.7 is not 0.7 in any float, and the error would be divided by a deviation as small as itself.
"""

from __future__ import annotations

from typing import Literal

import torch
from grpo_numerics.transforms import upcast
from torch import Tensor

ADVANTAGE_EPS = 1e-4


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: Literal["group", "batch", "none"] = "group", eps: float = ADVANTAGE_EPS
) -> Tensor:
    """(S,) reward minus its group's mean, over the standard deviation (unbiased) of group or batch, plus eps.

    rewards: (S,), the groups one after the other. Returns fp32, or fp64 for fp64 rewards. A group of equal rewards has no
    advantage: exactly 0. A reward that is not finite was not measured: it counts in no mean and no deviation, and its
    advantage is 0. scale="none" is Dr. GRPO's. Raises ValueError when the rewards are not whole groups.
    """
    if rewards.dim() != 1 or group_size < 1 or rewards.numel() % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} are not groups of {group_size}")
    grouped = rewards.detach().double().view(-1, group_size)
    known = grouped.isfinite()
    centred = _centred(grouped, known)
    if scale == "group":
        centred = centred / (_deviation(centred, known) + eps)
    elif scale == "batch":
        everyone = _centred(grouped.view(1, -1), known.view(1, -1))
        centred = centred / (_deviation(everyone, known.view(1, -1)) + eps)
    return centred.flatten().to(upcast(rewards).dtype)


def overlong_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """(S,) fp64, 0 to -1: how far into the last `buffer` tokens before the limit a completion goes.

    lengths: (S,) tokens, at most `limit`. DAPO's soft overlong punishment (Yu et al., arXiv 2503.14476, eq. 13):
    ((limit - buffer) - length) / buffer beyond limit - buffer. buffer 0 punishes nothing.
    """
    if not buffer:
        return torch.zeros_like(lengths, dtype=torch.float64)
    return ((limit - buffer - lengths.double()) / buffer).clamp(-1.0, 0.0)


def _centred(values: Tensor, known: Tensor) -> Tensor:
    """(K, N) less the mean of each row's known ones; 0 for the others."""
    # Any member will do to measure from: equal ones are 0 then, and so is their mean.
    first = values.gather(1, known.to(torch.uint8).argmax(1, keepdim=True)) if values.numel() else values[:, :1]
    apart = (values - first).where(known, 0.0)
    mean = apart.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    return (apart - mean).where(known, 0.0)


def _deviation(centred: Tensor, known: Tensor) -> Tensor:
    """(K, 1) unbiased standard deviation of rows whose mean is 0; 0 where fewer than two are known."""
    largest = centred.abs().amax(1, keepdim=True) if centred.numel() else centred[:, :1]
    scaled = centred / largest.where(largest > 0, 1.0)  # no square over- or underflows
    return largest * (scaled.square().sum(1, keepdim=True) / (known.sum(1, keepdim=True) - 1).clamp(min=1)).sqrt()
