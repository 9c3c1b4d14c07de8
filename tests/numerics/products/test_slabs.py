"""Products of one height: the right numbers, and the same bits alone and in company, in types where torch's own have not."""

from __future__ import annotations

import pytest
import torch
from grpo_numerics.products import fixed_linear, linear_in_slabs
from torch.nn.functional import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 100])
def test_as_exact_as_the_plain_product(dtype: torch.dtype, with_bias: bool, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((1, rows, 48), (40, 48), (40,)))
    truth = linear(x.double(), weight.double(), bias.double() if with_bias else None)
    ours = linear_in_slabs(x, weight, bias if with_bias else None, rows=32)
    assert ours.shape == (1, rows, 40)
    assert ours.dtype == dtype
    # products of 48 terms, each rounded at most as the type rounds, and the sum once more
    bound = torch.finfo(dtype).eps * (linear(x.double().abs(), weight.double().abs()) + 1) * (
        8 if dtype in (torch.float32, torch.float64) else 1
    )  # fmt: skip
    assert ((ours.double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_keeps_its_bits_at_every_height_and_place(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((700, 96), (80, 96), (80,)))
    whole = fixed_linear(x, weight, bias)
    for start, stop in ((0, 1), (5, 6), (3, 260), (255, 257), (256, 700), (699, 700), (0, 513)):
        assert torch.equal(fixed_linear(x[start:stop].clone(), weight, bias), whole[start:stop])
    order = torch.randperm(700, generator=generator)
    assert torch.equal(fixed_linear(x[order], weight, bias), whole[order])
