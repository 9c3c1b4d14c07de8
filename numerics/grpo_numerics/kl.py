"""Per-token estimators of KL(policy || reference) from the two log-probs of a sampled token.

With d = ref - logp, the token drawn from the policy:

    k1 = -d                 unbiased, of either sign
    k2 = d^2 / 2            biased, its gradient is that of the KL
    k3 = e^d - d - 1        unbiased, never negative
    k3+                     k3's value, k2's gradient
    abs = |d|

Schulman, "Approximating KL divergence" (2020), for k1 to k3. All are elementwise, take any float dtype, compute in fp32
or better and differentiate in both arguments; a gradient that fp16 cannot hold is fp16's largest number. They do not
mask: a token whose log-prob is not finite must be replaced before (`torch.where(mask, logp, 0)`), since a NaN times a
zero mask is still NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from .transforms import widened

KlKind = Literal["k1", "k2", "k3", "k3+", "abs"]

# Where e^d - 1 - d turns from its series to expm1(d) - d: at 1/2 the subtraction loses two bits, and the series needs
# 8 terms for fp32's 24 bits, 14 for fp64's 53 (the next term is d^n 2 / (n + 2)!).
_SERIES_BELOW = 0.5
_SERIES_TERMS = {torch.float32: 8, torch.float64: 14}
# e^20 = 4.9e8: beyond it k3 goes on along its tangent, so that value and gradient stay finite and the gradient still
# points home. One token at this distance has long stopped being a matter of precision.
LIMIT = 20.0


def k1(logp: Tensor, ref: Tensor) -> Tensor:
    """logp - ref."""
    return -_difference(logp, ref)


def k2(logp: Tensor, ref: Tensor) -> Tensor:
    """(ref - logp)^2 / 2."""
    d = _difference(logp, ref)
    return d * (d / 2)


def k3(logp: Tensor, ref: Tensor, *, limit: float = LIMIT) -> Tensor:
    """e^d - d - 1, d = ref - logp, to a few units in the last place for every d.

    For small d a series, since the subtraction cancels (in fp32 it is wrong by 5 % at d = 1e-3 and 0 below 3e-4).
    For d > limit the tangent at limit; limit=math.inf for the plain function, infinite from d = 88.8 on in fp32. Raises
    ValueError for a limit in the range of the series.
    """
    if not limit >= _SERIES_BELOW:
        raise ValueError(f"limit must be at least {_SERIES_BELOW}, got {limit}")
    d = _difference(logp, ref)
    small = d.abs() < _SERIES_BELOW
    near = torch.where(small, d, 0.0)
    far = torch.where(small, 1.0, d)  # the branch that is not taken must not overflow: its gradient would be 0 * inf
    series = torch.ones_like(near)
    for n in range(_SERIES_TERMS[d.dtype] + 2, 2, -1):
        series = 1.0 + near / n * series
    # Two clamps that meet at the limit would both pass the gradient at equality and double it: each d is on one side.
    over = far > limit
    curve = torch.where(over, limit, far)
    tangent = torch.where(over, far - limit, 0.0) * (math.expm1(limit) if limit < math.inf else 0.0)
    return torch.where(small, near.square() / 2 * series, torch.expm1(curve) - curve + tangent)


def k3_plus(logp: Tensor, ref: Tensor, *, limit: float = LIMIT) -> Tensor:
    """The value of `k3` with the gradient of `k2` (straight-through): low variance forward, the KL's gradient back."""
    d = _difference(logp, ref)
    d = d.where(d.isfinite(), 0.0)
    # k2 itself, less its value, would be inf - inf from d = 1.8e19 on in fp32.
    return k3(logp, ref, limit=limit).detach() + d.detach() * (d - d.detach())


def absolute(logp: Tensor, ref: Tensor) -> Tensor:
    """|ref - logp|."""
    return _difference(logp, ref).abs()


def _difference(logp: Tensor, ref: Tensor) -> Tensor:
    fine = torch.float64 if torch.float64 in (logp.dtype, ref.dtype) else torch.float32
    return widened(ref, fine) - widened(logp, fine)


_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3+": k3_plus,
    "abs": absolute,
}


def kl_estimate(kind: KlKind, logp: Tensor, ref: Tensor) -> Tensor:
    """The estimator of that name. logp, ref: log-probs of the same tokens, same shape. Raises ValueError otherwise."""
    if kind not in _ESTIMATORS:
        raise ValueError(f"kl estimator must be one of {', '.join(get_args(KlKind))}, got {kind!r}")
    if logp.shape != ref.shape:
        raise ValueError(f"logp and ref must have the same shape, got {tuple(logp.shape)} and {tuple(ref.shape)}")
    return _ESTIMATORS[kind](logp, ref)
