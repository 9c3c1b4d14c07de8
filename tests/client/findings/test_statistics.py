"""The statistics against scipy and against high precision."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from grpo_client.findings import statistics
from scipy import stats


@pytest.mark.parametrize("n", [1, 20, 1000, 200_000])
@pytest.mark.parametrize("p", [0.3, np.exp(-3), np.exp(-7)])
def test_binomial_tails(n: int, p: float) -> None:
    for hits in {0, 1, 2, n // 100, n // 10, n}:
        # lgamma of a large n carries some 1e-16 of its size: 2e6 at 200,000, and exp turns that into a relative error.
        relative = 1e-9 + 4e-16 * n * np.log(n + 1)
        assert statistics.binomial_tail(hits, n, p) == pytest.approx(
            stats.binom.sf(hits - 1, n, p), rel=relative, abs=1e-300
        )


def test_k3_of_small_and_large_differences() -> None:
    d = np.concatenate([np.geomspace(1e-12, 30, 60), -np.geomspace(1e-12, 30, 60), [0.0, 1e-2, -1e-2]])
    with mpmath.workdps(60):
        exact = np.array([float(mpmath.expm1(mpmath.mpf(float(x))) - mpmath.mpf(float(x))) for x in d])
    # Beyond the series, e^d - 1 and d cancel to d^2 / 2 of d: 2 / |d| rounding errors at |d| = 1e-2.
    np.testing.assert_allclose(statistics.k3(d), exact, rtol=200 * 2.3e-16)


def test_ranks_and_correlation() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, size=50).astype(float)
    b = a + rng.normal(size=50)
    np.testing.assert_allclose(statistics.ranks(a) + 1, stats.rankdata(a))
    assert statistics.correlation(statistics.ranks(a), statistics.ranks(b)) == pytest.approx(stats.spearmanr(a, b)[0])
    assert np.isnan(statistics.correlation(np.ones(3), a[:3]))


def test_line_fit_and_z_score() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=100)
    y = 1.5 * x - 0.3 + 0.1 * rng.normal(size=100)
    slope, intercept, fit = statistics.line_fit(x, y)
    known = stats.linregress(x, y)
    assert (slope, intercept, fit) == pytest.approx((known.slope, known.intercept, known.rvalue**2))
    assert statistics.z_score(y, 0.1) == pytest.approx(stats.ttest_1samp(y, 0.1).statistic)
    assert statistics.z_score(np.ones(5), 1.0) == 0
    assert statistics.z_score(np.ones(5), 2.0) == -np.inf


def test_what_a_short_float_holds() -> None:
    fine = np.random.default_rng(2).normal(-3, 2, size=4000)
    assert statistics.share_in_bfloat16(fine) < 0.01
    assert statistics.share_in_float16(fine.astype(np.float16).astype(np.float64)) == 1
    assert statistics.decimals_kept(fine)
    assert not statistics.decimals_kept(np.round(fine, 4))
