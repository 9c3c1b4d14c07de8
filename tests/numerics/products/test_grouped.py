"""Products of rows with the matrices of their experts: the right numbers, and the same bits however many rows an expert has."""

from __future__ import annotations

import pytest
import torch
from grpo_numerics.products import expert_rows, grouped_linear
from torch import Tensor

EXPERTS, OUTPUTS, INPUTS = 5, 48, 64


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def multiplied(x: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool, whole: bool) -> Tensor:
    rows = expert_rows(ids, weight, (OUTPUTS, INPUTS))
    return grouped_linear(rows.spread(x), weight, bias, rows, transposed=transposed, whole=whole)[rows.places]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_meets_the_matrix_of_its_expert(
    dtype: torch.dtype, with_bias: bool, transposed: bool, whole: bool
) -> None:
    x, weight = numbers(70, INPUTS).to(dtype), numbers(EXPERTS, OUTPUTS, INPUTS, seed=1).to(dtype)
    bias = numbers(EXPERTS, OUTPUTS, seed=2).to(dtype) if with_bias else None
    ids = torch.randint(0, EXPERTS, (70,), generator=torch.Generator().manual_seed(3))
    ids[ids == 3] = 4  # one has no rows at all
    truth = torch.einsum("sk,snk->sn", x.double(), weight[ids].double())
    if bias is not None:
        truth += bias[ids].double()
    laid_out = weight.transpose(1, 2).contiguous() if transposed else weight
    ours = multiplied(x, ids, laid_out, bias, transposed=transposed, whole=whole)
    size = torch.einsum("sk,snk->sn", x.double().abs(), weight[ids].double().abs()) + 1
    assert ours.dtype == dtype
    # products of 64 terms summed in float32, and one rounding to the type
    assert ((ours.double() - truth).abs() <= INPUTS * 2.0**-24 * size + torch.finfo(dtype).eps * truth.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_keeps_its_bits_in_any_company(dtype: torch.dtype) -> None:
    x, weight = numbers(200, INPUTS).to(dtype), numbers(EXPERTS, OUTPUTS, INPUTS, seed=1).to(dtype)
    ids = torch.randint(0, EXPERTS, (200,), generator=torch.Generator().manual_seed(3))

    def product(rows: slice) -> Tensor:
        return multiplied(x[rows], ids[rows], weight, None, transposed=False, whole=False)

    together = product(slice(None))
    for rows in (slice(0, 1), slice(7, 9), slice(3, 70), slice(120, 200)):
        assert torch.equal(product(rows), together[rows])


def test_rows_of_an_expert_lie_together_in_whole_blocks() -> None:
    ids = torch.tensor([3, 0, 3, 3, 1, 0])
    rows = expert_rows(ids, torch.zeros(EXPERTS, 1, 1), ())
    assert rows.count % rows.block == 0
    assert rows.places.unique().numel() == len(ids)
    assert torch.equal(rows.experts[rows.places // rows.block].long(), ids)
    spread = rows.spread(torch.ones(len(ids), 2))
    assert spread.sum() == 2 * len(ids)
    # in the order in which they came
    assert (rows.places[ids == 3].diff() == 1).all()
