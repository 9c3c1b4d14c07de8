"""The row counts that a stream may have: known in full, few where each must be tried, and never much padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grpo_numerics.packed import PackedLayout, Schedule
from grpo_server.engine.heights import Heights, spread

WIDTHS = (96, 352, 176)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("coarse", [False, True])
def test_every_number_of_tokens_leads_to_a_reachable_count(threads: int, coarse: bool) -> None:
    heights = Heights(WIDTHS, threads, coarse)
    reachable = heights.reachable(5000)
    assert reachable == sorted({heights.of(tokens) for tokens in range(1, 5001)})
    assert all(heights.of(tokens) >= tokens for tokens in range(1, 5001))


def test_the_stream_has_the_rows_that_were_tried() -> None:
    rng = np.random.default_rng(0)
    heights = Heights(WIDTHS, 2, coarse=True)
    for tokens in (1, 31, 500, 2049, 4095, 7000):
        layout = PackedLayout.build([rng.integers(0, 99, tokens, dtype=np.int32)], [[np.ones(1, np.int32)]])
        step = heights.step(layout.tokens)
        schedule = Schedule(layout, torch.device("cpu"), exact=True, rows=step, widths=WIDTHS, threads=2)
        assert schedule.padded_tokens == heights.of(tokens)


def test_where_each_is_tried_they_are_few_and_padding_is_small() -> None:
    heights = Heights((4096,), 1, coarse=True)
    assert len(heights.reachable(32_768)) < 250
    assert all(heights.of(tokens) <= 1.035 * tokens + 64 for tokens in range(1000, 32_768, 97))


def test_a_spread_has_both_ends_and_is_dense_where_counts_are_small() -> None:
    assert spread([1, 2, 3]) == [1, 2, 3]
    some = spread(list(range(32, 32 * 200, 32)))
    assert some[0] == 32
    assert some[-1] == 32 * 199
    assert {32, 64, 96} <= set(some)
    assert len(some) <= 13
