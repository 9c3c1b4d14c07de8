"""The statistics that findings rest on. Arrays are float64; nothing here knows what a completion is.

With r the reference's log-prob of a sampled token, t the policy's and d = r - t: where the token was drawn by t, the mean of
exp(d) is 1 whatever the reference is, given all that came before. So exp(d) - 1 is a martingale difference, and plain
z-scores and binomial tails hold without clustering by completion.
"""

from __future__ import annotations

from math import exp, lgamma, log, log1p

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SERIES_BELOW = 1e-2  # there e^d - d - 1 has lost four of its sixteen digits, and four terms have them all


def k3(d: Floats) -> Floats:
    """e^d - d - 1 (Schulman, "Approximating KL divergence"), right to the last digits for small d as well."""
    series = d * d / 2 * (1 + d / 3 * (1 + d / 4 * (1 + d / 5 * (1 + d / 6))))
    return np.where(np.abs(d) < _SERIES_BELOW, series, np.expm1(np.minimum(d, 700.0)) - d)


def z_score(values: Floats, mean: float) -> float:
    """(mean of the values - mean) in standard errors; 0 where the values do not vary and are right, else infinite."""
    off = float(values.mean()) - mean
    spread = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    if spread == 0:
        return 0.0 if off == 0 else float(np.copysign(np.inf, off))
    return off / spread


def binomial_tail(hits: int, n: int, p: float) -> float:
    """P(X >= hits) of X ~ Binomial(n, p), 0 < p < 1. Exact terms, summed from the one at `hits` until they vanish."""
    if hits <= 0:
        return 1.0
    total, k = 0.0, hits
    while k <= n:
        term = exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p))
        total += term
        if k > n * p and term <= total * 1e-16:
            break
        k += 1
    return min(total, 1.0)


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's r; NaN where one of the two does not vary."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def ranks(values: Floats) -> Floats:
    """Ranks from 0, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]


def line_fit(x: Floats, y: Floats) -> tuple[float, float, float]:
    """Least squares y = slope x + intercept: (slope, intercept, R^2). NaN where x does not vary."""
    dx, dy = x - x.mean(), y - y.mean()
    xx, yy = float(dx @ dx), float(dy @ dy)
    if xx == 0:
        return float("nan"), float("nan"), float("nan")
    slope = float(dx @ dy) / xx
    residual = dy - slope * dx
    return slope, float(y.mean() - slope * x.mean()), 1 - float(residual @ residual) / yy if yy > 0 else float("nan")


def share_in_bfloat16(values: Floats) -> float:
    """The share of the values that bfloat16 holds exactly."""
    low_bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF)
    return float(np.count_nonzero(low_bits == 0) / len(values)) if len(values) else 0.0


def share_in_float16(values: Floats) -> float:
    """The share of the values that float16 holds exactly."""
    fine = values.astype(np.float32)
    with np.errstate(over="ignore"):
        same = fine.astype(np.float16).astype(np.float32) == fine
    return float(np.count_nonzero(same) / len(values)) if len(values) else 0.0


def decimals_kept(values: Floats, digits: int = 5) -> bool:
    """Whether the values were written with more than so many decimals; what was rounded to fewer hides its precision."""
    return bool(np.mean(np.abs(values - np.round(values, digits)) > 1e-9) > 0.05)
