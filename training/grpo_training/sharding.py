"""Tensors that are cut over ranks (DTensor, as FSDP2 and tensor parallelism make them): sums over all of a tensor, the
whole of it, and a whole one cut again.

A sum over a shard is not the tensor's. `over_whole` adds up what the ranks have, in one collective per group of ranks
however many tensors there are; every rank joins it, also one whose shard is empty. Ordinary tensors pass unchanged, so
that callers need no second branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory; an ordinary tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def aligned(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient, cut as the weight is. A collective where it was not (a pending sum of tensor parallelism)."""
    if isinstance(weight, DTensor) and isinstance(grad, DTensor) and grad.placements != weight.placements:
        return grad.redistribute(weight.device_mesh, weight.placements)
    return grad


def owners(tensor: Tensor, *, rows: bool = False) -> tuple[dist.ProcessGroup, ...]:
    """The groups of ranks over which a sum of the tensor's elements has still to be added up.

    rows: sums are per row (first dimension), and where that is the one that was cut each rank holds whole rows.
    """
    if not isinstance(tensor, DTensor):
        return ()
    cut = [(i, placement) for i, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if any(placement.is_partial() for _, placement in cut):
        raise ValueError("a weight that is a pending sum over ranks (Partial) has no elements of its own")
    return tuple(tensor.device_mesh.get_group(i) for i, p in cut if not (rows and getattr(p, "dim", None) == 0))


def over_whole(
    sums: Sequence[Tensor], groups: Sequence[tuple[dist.ProcessGroup, ...]], *, largest: bool = False
) -> list[Tensor]:
    """Each rank's sums, added up over the ranks that hold the rest of the tensor; entry i over groups[i]. largest: the
    largest of each rank's figures instead.

    Every rank must call it with tensors of the same shapes in the same order. Sums of one dtype share a collective.
    """
    result = list(sums)
    together: dict[tuple[tuple[dist.ProcessGroup, ...], torch.dtype], list[int]] = {}
    for i, (value, over) in enumerate(zip(sums, groups, strict=True)):
        if over:
            together.setdefault((over, value.dtype), []).append(i)
    for (over, _), members in together.items():  # insertion order: the same on every rank
        flat = torch.cat([result[i].flatten() for i in members])
        for group in over:
            dist.all_reduce(flat, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
        for i, part in zip(members, flat.split([result[i].numel() for i in members]), strict=True):
            result[i] = part.view_as(result[i])
    return result


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank that holds a part of it (a collective); an ordinary one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, cut as `like` is: on its mesh and device, nothing sent."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
