"""Masks and figures as a caller gives them, made into what the formulas work with: bool (S, C), 0 where nothing counts.

Shape letters: S sequences, C completion tokens (padded).
"""

from __future__ import annotations

import torch
from grpo_numerics.transforms import upcast
from torch import Tensor


def boolean_mask(mask: Tensor, shape: torch.Size, *, name: str = "mask") -> Tensor:
    """The mask as bool. bool, integers and floats will do, as long as they are 0 and 1.

    Raises ValueError, in terms of `name`, for another shape and for other numbers: half a token is a weight.
    """
    if mask.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(mask.shape)}")
    if mask.dtype is torch.bool:
        return mask
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{name} must hold nothing but 0 and 1 (or False and True): what is between is for weights")
    return mask.bool()


def per_token(values: Tensor, mask: Tensor, *, name: str) -> Tensor:
    """(S,), (S, 1) or (S, C) values as (S, C), fp32 or better; 0 where the mask (bool) hides them, NaN or not.

    Raises ValueError, in terms of `name`, for another shape.
    """
    column = values.unsqueeze(-1) if values.dim() == 1 else values
    if column.shape not in (mask.shape, (*mask.shape[:-1], 1)):
        s, c = mask.shape
        raise ValueError(f"{name} must have shape ({s},), ({s}, 1) or ({s}, {c}), got {tuple(values.shape)}")
    return upcast(column).expand(mask.shape).where(mask, 0.0)
