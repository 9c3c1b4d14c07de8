"""Products of rows with the matrices of their experts, whose rows keep their bits however many others an expert is given.

The rows of each expert are filled up to whole blocks, so that its product never has a number of rows that depends on the text.
On an NVIDIA GPU all experts are one launch, and nothing waits for the device to say how many rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..alignment import aligned_rows, row_block
from .choice import runs_kernel


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """Where rows lie that are sorted by expert and filled up. places: (S,) int64, of each row. experts: (T,) int32, whose each
    block of `block` rows is; -1: nobody's."""

    places: Tensor
    experts: Tensor
    block: int

    @property
    def count(self) -> int:
        """Rows with all that fills them up."""
        return len(self.experts) * self.block

    def spread(self, x: Tensor) -> Tensor:
        """(S, K) rows to (count, K), zeros between them."""
        return x.new_zeros(self.count, x.shape[1]).index_copy_(0, self.places, x)


def expert_rows(ids: Tensor, weight: Tensor, widths: tuple[int, ...]) -> ExpertRows:
    """Lay rows out for the experts of `weight` (E, ., .). ids: (S,) int64, the expert of each row. widths: numbers a row of
    what the rows become between two products, where a CPU's elementwise loops run over them."""
    on_cpu = ids.device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else 1
    if on_cpu:
        block = row_block(threads)
    else:
        from .kernel import blocks_on

        block = blocks_on(weight).m
    experts = len(weight)
    counts = torch.zeros(experts, dtype=torch.int64, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))
    blocks = (counts + block - 1) // block
    ends = blocks.cumsum(0)
    order = torch.argsort(ids, stable=True)
    of_expert = ids[order]
    rank = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[of_expert]
    places = torch.empty_like(ids)
    places[order] = (ends - blocks)[of_expert] * block + rank
    total = len(ids) // block + min(experts, len(ids))  # more there never are
    if on_cpu:  # where asking for a number costs nothing
        total = aligned_rows(int(ends[-1]) * block, widths, threads) // block
    table = torch.searchsorted(ends, torch.arange(total, device=ids.device), right=True)
    return ExpertRows(places, torch.where(table < experts, table, -1).int(), block)


def grouped_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: ExpertRows, *, transposed: bool = False, whole: bool = False
) -> Tensor:
    """x (rows.count, K) times the matrix of each row's expert, plus its bias: (rows.count, N).

    weight: (E, N, K), or (E, K, N) if transposed; bias: (E, N). whole: a CPU's product keeps the bits of a row at every whole
    number of blocks, so that an expert's may be one product; otherwise each block is one.
    """
    if weight.device.type != "cpu":
        from .grouped_kernel import grouped_by_kernel

        return grouped_by_kernel(x, weight, bias, rows.experts, transposed=transposed)
    out = x.new_zeros(len(x), weight.shape[2 if transposed else 1])
    for expert, first, end in _runs(rows.experts.tolist(), whole):
        span = slice(first * rows.block, end * rows.block)
        matrix = weight[expert].t() if transposed else weight[expert]
        out[span] = linear(x[span], matrix, None if bias is None else bias[expert])
    return out


def runs_grouped(weight: Tensor) -> bool:
    """Whether `grouped_linear` takes experts with these weights (E, N, K): on a CPU any, on a GPU what the kernel takes."""
    return weight.device.type == "cpu" or runs_kernel(weight)


def _runs(experts: list[int], whole: bool) -> list[tuple[int, int, int]]:
    """(expert, first block, block behind the last) of every product."""
    runs: list[tuple[int, int, int]] = []
    for at, expert in enumerate(experts):
        if expert < 0:
            continue
        if whole and runs and runs[-1][0] == expert:
            runs[-1] = (expert, runs[-1][1], at + 1)
        else:
            runs.append((expert, at, at + 1))
    return runs
