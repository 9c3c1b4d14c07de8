"""The blockwise log-sum-exp equals the whole one, however a row is cut and whatever is masked."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.special
import torch
from grpo_numerics import OnlineLogSumExp
from hypothesis import given, settings
from hypothesis import strategies as st

INF = math.inf
logits = st.one_of(st.floats(-1e3, 1e3, width=32), st.just(-INF))


def whole(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Log-sum-exp and entropy of each row in float64."""
    log_p = scipy.special.log_softmax(x.double().numpy(), axis=-1)
    return scipy.special.logsumexp(x.double().numpy(), axis=-1), scipy.special.entr(np.exp(log_p)).sum(-1)


@settings(deadline=None)
@given(row=st.lists(logits, min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_any_cut_of_a_row(row: list[float], cuts: list[int]) -> None:
    x = torch.tensor([row])
    state = OnlineLogSumExp(1, entropy=True)
    edges = sorted({0, len(row), *(min(cut, len(row)) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        state.update(x[:, start:stop])
    if all(value == -INF for value in row):
        assert state.logsumexp().tolist() == [-INF]
        assert state.entropy().isnan().all()
        return
    lse, entropy = whole(x)
    largest = max(abs(value) for value in row if value > -INF)
    # one rounding at the row's magnitude, and a few of the sums, which are about 1
    eps = torch.finfo(torch.float32).eps
    np.testing.assert_allclose(state.logsumexp().double(), lse, rtol=0, atol=eps * (largest + 8))
    # in sum x e^x each term carries its argument's relative error |x| eps, and |x| e^x <= 0.37, over <= 40 terms
    np.testing.assert_allclose(state.entropy().double(), entropy, rtol=0, atol=40 * eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_merge_is_the_state_of_the_union(dtype: torch.dtype) -> None:
    x = (30 * torch.randn(5, 1021, generator=torch.Generator().manual_seed(1))).to(dtype)
    accumulator = torch.float64 if dtype is torch.float64 else torch.float32
    left, right = (OnlineLogSumExp(5, dtype=accumulator, entropy=True) for _ in range(2))
    left.update(x[:, :400])
    right.update(x[:, 400:])
    left.merge(right)
    lse, entropy = whole(x)
    eps = torch.finfo(accumulator).eps
    np.testing.assert_allclose(left.logsumexp().double(), lse, rtol=0, atol=4 * eps * float(x.abs().max()))
    np.testing.assert_allclose(left.entropy().double(), entropy, rtol=0, atol=64 * eps)


def test_update_leaves_the_block_and_consume_may_not() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    before = x.clone()
    state = OnlineLogSumExp(3)
    state.update(x)
    assert torch.equal(x, before)
    other = OnlineLogSumExp(3)
    other.consume(x)
    assert torch.equal(state.logsumexp(), other.logsumexp())


def test_a_poisoned_row_stays_alone() -> None:
    state = OnlineLogSumExp(4, entropy=True)
    state.update(torch.tensor([[0.0, 1.0], [0.0, math.nan], [-INF, -INF], [INF, 0.0]]))
    state.update(torch.zeros(4, 2))
    assert state.logsumexp().isnan().tolist() == [False, True, False, True]
    assert state.entropy().isnan().tolist() == [False, True, False, True]
    assert state.logsumexp()[2].item() == pytest.approx(math.log(2), rel=1e-7)
