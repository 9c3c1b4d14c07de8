"""Elementwise functions whose bits do not depend on where in a tensor a number stands, nor on how many stand beside it.

torch's vectorised CPU loops take two vectors at a time (16 floats under AVX2, 32 under AVX-512); what is left over, at the end
of the tensor or of a thread's share of it, goes through scalar code that rounds otherwise. That is how sigmoid, softplus,
logaddexp, exp2, SiLU and tanh-GELU change a bit when a batch grows by a row. exp, log, log1p, expm1, tanh and the exact
operations (+, -, *, /, sqrt, max) do not; here the others are put together from those. All are differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Where log1p(e^x) is x to the last bit in fp64 too, and e^x does not overflow in fp32.
_LINEAR_ABOVE = 50.0


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) with its relative precision down to the smallest float; -inf gives 0, +inf itself. NaN stays NaN."""
    return torch.where(x > _LINEAR_ABOVE, x, torch.log1p(torch.exp(x.clamp(max=_LINEAR_ABOVE))))


def log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b); -inf where both are -inf. No gradient is defined there."""
    top, low = torch.maximum(a, b), torch.minimum(a, b)
    gap = torch.where(low == -torch.inf, -torch.inf, low - top)  # -inf - -inf would be NaN
    return top + torch.log1p(torch.exp(gap))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), with the relative precision of value and gradient kept on both sides."""
    positive = x >= 0
    small = torch.exp(torch.where(positive, -x, x))
    return torch.where(positive, 1.0, small) / (1.0 + small)
