"""What the product kernel computes, under Triton's interpreter, against float64. Run by `test_interpreted`.

In a process of its own, because Triton decides at import whether it compiles or interprets. fp32 and fp16 only: the
interpreter multiplies the bit patterns of bf16.
"""

from __future__ import annotations

import pytest
import torch
from grpo_numerics.products import fixed_linear, runs_kernel
from grpo_numerics.products.grouped_kernel import grouped_by_kernel
from grpo_numerics.products.kernel import blocks_on
from torch.nn.functional import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 16, 32), (65, 70, 33), (300, 130, 64), (129, 257, 100)])
def test_the_kernel_matches_float64(dtype: torch.dtype, with_bias: bool, rows: int, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (
        torch.randn(s, generator=generator).to(dtype) for s in ((1, rows, inputs), (outputs, inputs), (outputs,))
    )
    assert runs_kernel(weight)
    truth = linear(x.double(), weight.double(), bias.double() if with_bias else None)
    ours = fixed_linear(x, weight, bias if with_bias else None)
    size = linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    # the fp32 sum of K terms, and one rounding to the output's type
    bound = inputs * 2.0**-24 * size + torch.finfo(dtype).eps * truth.abs()
    assert ours.dtype == dtype
    assert ((ours.double() - truth).abs() <= bound).all()


def test_a_row_keeps_its_bits_at_every_height_and_place() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((200, 40), (72, 40), (72,)))
    whole = fixed_linear(x, weight, bias)
    for start, stop in ((0, 1), (63, 65), (64, 200), (199, 200), (7, 130)):
        assert torch.equal(fixed_linear(x[start:stop].clone(), weight, bias), whole[start:stop])


def test_no_rows_is_no_launch() -> None:
    assert fixed_linear(torch.zeros(1, 0, 8), torch.zeros(5, 8)).shape == (1, 0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_each_block_meets_the_matrix_of_its_expert(dtype: torch.dtype, transposed: bool, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    outputs, inputs, experts = 70, 40, torch.tensor([2, 2, 0, -1], dtype=torch.int32)
    weight = torch.randn(3, outputs, inputs, generator=generator).to(dtype)
    block = blocks_on(weight).m
    x = torch.randn(len(experts) * block, inputs, generator=generator).to(dtype)
    bias = torch.randn(3, outputs, generator=generator).to(dtype) if with_bias else None
    laid_out = weight.transpose(1, 2).contiguous() if transposed else weight
    ours = grouped_by_kernel(x, laid_out, bias, experts, transposed=transposed)
    for n, expert in enumerate(experts.tolist()):
        rows = slice(n * block, (n + 1) * block)
        if expert < 0:
            assert (ours[rows] == 0).all()
            continue
        # the same order of the same sum as the product of one matrix
        assert torch.equal(ours[rows], fixed_linear(x[rows], weight[expert], None if bias is None else bias[expert]))
