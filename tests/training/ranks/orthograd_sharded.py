"""On each of two ranks: OrthoGrad over sharded parameters beside the same in one piece. Rank 0 writes the differences."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from grpo_training.orthograd import attach, project
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

GRANULARITIES = ("tensor", "row", "global")


class Net(nn.Module):
    """Sizes that two ranks cannot share evenly; of `one_row` and its bias the second rank has nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.middle = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.one_row = nn.Linear(5, 1)
        self.head = nn.Linear(5, 3, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.middle(self.table(ids)).tanh())
        return self.head(hidden) + self.one_row(hidden)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def loss_of(model: nn.Module) -> Tensor:
    return model(torch.tensor([0, 1, 2, 3, 6])).square().mean()


def worst(sharded: list[Tensor], plain: list[Tensor]) -> float:
    """The largest difference, relative to the tensor's largest entry."""
    pairs = zip(sharded, plain, strict=True)
    return max(
        float((cast(DTensor, a).full_tensor() - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs
    )


def fsdp2(granularity: Any) -> dict[str, float]:
    """Three steps of AdamW; both ranks see the same data, so their mean gradient is the one of one process."""
    plain, sharded = net(), net()
    fully_shard(sharded.middle)
    fully_shard(sharded)
    found: dict[str, float] = {}
    optimizers = []
    for model in (plain, sharded):
        optimizers.append(torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3))
        attach(optimizers[-1], granularity=granularity)
    for step in range(3):
        for model, optimizer in zip((plain, sharded), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        both = [[cast(Tensor, p.grad) for p in model.parameters()] for model in (sharded, plain)]
        found[f"gradient {step}"] = worst(*both)
        found[f"weight {step}"] = worst([p.data for p in sharded.parameters()], [p.data for p in plain.parameters()])
    found["empty shards"] = float(sum(cast(DTensor, p).to_local().numel() == 0 for p in sharded.parameters()))
    found["twice"] = repeated(optimizers[1], sharded)
    return found


def repeated(optimizer: torch.optim.Optimizer, model: nn.Module) -> float:
    """A gradient added to in place after a step is a new one and is projected: the cosine that is left."""
    loss_of(model).backward()
    optimizer.step = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    middle = cast(Net, model).middle.weight
    for hook in optimizer._optimizer_step_pre_hooks.values():
        hook(optimizer, (optimizer,), {})
    weight, grad = (cast(DTensor, t).full_tensor().flatten() for t in (middle.data, middle.grad))
    return float(weight @ grad / (weight.norm() * grad.norm()))


def placements(granularity: Any) -> dict[str, float]:
    """Cut by columns, kept whole on every rank, and cut both ways."""
    mesh = init_device_mesh("cpu", (2,))
    square = init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))
    cases = {
        "columns": (mesh, [Shard(1)]),
        "replicated": (mesh, [Replicate()]),
        "rows": (mesh, [Shard(0)]),
        "two dimensions": (square, [Replicate(), Shard(1)]),
    }
    generator = torch.Generator().manual_seed(1)
    plain, cut = [], []
    for on, how in cases.values():
        weight, grad = (torch.randn(3, 5, generator=generator) for _ in range(2))
        for into, of in ((plain, lambda t: t), (cut, lambda t, on=on, how=how: distribute_tensor(t, on, how))):
            into.append(nn.Parameter(of(weight.clone())))
            into[-1].grad = of(grad.clone())
    for params in (plain, cut):
        project([{"params": params}], granularity=granularity)
    return {name: worst([c.grad], [p.grad]) for name, c, p in zip(cases, cut, plain, strict=True)}


def main() -> None:
    dist.init_process_group("gloo")
    found = {kind: fsdp2(kind) | placements(kind) for kind in GRANULARITIES}
    empty = torch.tensor([figures["empty shards"] for figures in found.values()])
    dist.all_reduce(empty)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps({"found": found, "empty": empty.tolist()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
