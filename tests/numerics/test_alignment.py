"""The padded height against torch's own cutting of a loop into threads' shares, written out."""

import itertools

import pytest
import torch
from grpo_numerics.alignment import LANES, aligned_rows, row_block


def remainders(numbers, threads):
    """Beginnings and lengths of the shares as `at::parallel_for` makes them: each must be whole pairs of vectors."""
    shares = 1 if numbers <= 32768 else min(threads, -(-numbers // 32768))
    chunk = -(-numbers // shares)
    return [min(chunk, numbers - start) % LANES for start in range(0, numbers, chunk)]


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 7, 12, 48, 96])
@pytest.mark.parametrize("widths", [(64,), (576, 1536, 768), (896, 4864, 2432), (3584, 18944), (96, 352, 176)])
def test_no_thread_is_left_with_a_remainder(threads, widths):
    for rows in (1, 31, 32, 33, 200, 1000, 6144):
        height = aligned_rows(rows, widths, threads)
        assert height >= rows
        assert height % LANES == 0
        assert height % (4 * threads) == 0  # whole fours for each thread of a matrix product
        assert not any(itertools.chain.from_iterable(remainders(height * w, threads) for w in widths))
        # what it costs: at most a block of rows for each thread, once every thread has work
        assert height <= max(rows, 32768 * threads // min(widths)) + row_block(threads) * threads


def test_two_threads_need_no_more_than_whole_vectors():
    assert [aligned_rows(n, (576, 1536), 2) for n in (1, 32, 33, 500)] == [32, 32, 64, 512]


def test_an_activation_over_aligned_rows_keeps_its_bits():
    """The very loop it is for: SiLU over (rows, width) on three threads, against every row by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        width = 352
        x = torch.randn(aligned_rows(700, (width,), 3), width, generator=torch.Generator().manual_seed(0)) * 3
        alone = torch.cat([torch.nn.functional.silu(row) for row in x.split(1)])
        for rows in (33, 200, 333, 500, 700):
            height = aligned_rows(rows, (width,), 3)
            assert torch.equal(torch.nn.functional.silu(x[:height]), alone[:height])
    finally:
        torch.set_num_threads(before)
