"""The best tokens of tiles, against a stable sort of whole rows: the same logits, of equal ones the lowest ids."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from grpo_numerics.head.best import BestByKeys, BestByTopk, best_tokens
from torch import Tensor

INF = math.inf
ROWS = 40


def of_tiles(z: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
    best = BestByKeys(len(z), k)
    for start in range(0, z.shape[1], width):
        best.take(z[:, start : start + width].contiguous(), start)
    return best.logits, best.ids


def check(z: Tensor, k: int, width: int) -> None:
    logits, ids = of_tiles(z, k, width)
    values, order = z.sort(dim=-1, descending=True, stable=True)
    torch.testing.assert_close(ids, order[:, :k], rtol=0, atol=0)
    torch.testing.assert_close(logits, values[:, :k], rtol=0, atol=0)


def normal(rows: int, vocab: int) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(rows + vocab))


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "any order": lambda z: z,
    "the best come last": lambda z: z.sort(-1).values,
    "the best come first": lambda z: z.sort(-1, descending=True).values,
    "many are equal": lambda z: z.round(),
    "all are equal": torch.zeros_like,
    "one row is crowded": lambda z: torch.where(torch.arange(len(z))[:, None] == 3, 7.0, z),
    "most are out of reach": lambda z: torch.where(z > 2.0, z, -INF),
    "none is within reach in the first tiles": lambda z: torch.where(torch.arange(z.shape[1]) > 600, z, -INF),
    "signed zeros": lambda z: torch.where(z > 0, 0.0, -0.0),
    "tiny and huge": lambda z: z * torch.tensor([1e-44, 1e38]).repeat(z.shape[1] // 2),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("k", [1, 7, 64, 300])
def test_they_are_those_of_a_stable_sort(way: str, k: int) -> None:
    check(WAYS[way](normal(ROWS, 1000)), k, 256)  # the last tile has another width


@pytest.mark.parametrize("width", [13, 16, 100, 1000])
@pytest.mark.parametrize("k", [1, 20, 1000])
def test_tiles_of_any_width_and_k_up_to_the_whole_vocabulary(width: int, k: int) -> None:
    check(normal(ROWS, 1000), k, width)


def test_rows_are_merged_in_parts() -> None:
    check(normal(300, 2048), 1024, 1024)  # 128 of the rows at a time


def test_a_row_that_is_lost_leaves_the_others_as_they_are() -> None:
    z = normal(ROWS, 512)
    z[5, 300], z[6, 2], z[7] = math.nan, math.nan, math.nan
    logits, ids = of_tiles(z, 64, 128)
    good = [row for row in range(ROWS) if row not in (5, 6, 7)]
    values, order = z.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(ids[good], order[good, :64])
    assert torch.equal(logits[good], values[good, :64])
    assert ((ids >= 0) & (ids < 512)).all()


def test_the_way_follows_device_and_dtype() -> None:
    cpu = torch.device("cpu")
    assert isinstance(best_tokens(2, 3, dtype=torch.float32, device=cpu), BestByKeys)
    double = best_tokens(2, 3, dtype=torch.float64, device=cpu)
    assert isinstance(double, BestByTopk)
    z = normal(2, 32).double()
    double.take(z[:, :2], 0)
    double.take(z[:, 2:], 2)
    assert torch.equal(double.ids, z.topk(3).indices)
