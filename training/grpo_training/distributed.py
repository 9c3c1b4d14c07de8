"""The processes of a run: who they are, which groups each of them takes, how the model is shared, what they tell each other.

    world = World.join(config)                      one process unless torchrun or `accelerate launch` started several
    world.wrap(model)                               DDP or FSDP2; before the optimizer is made
    world.forward(lambda: policy.logprobs(rollout))

The batch of a step is cut by prompt group, and within each portion (gradient accumulation): portion i of the run is what
portion i of all ranks together is. Losses are normalised by counts of the whole step, so that the gradient is that of one
process up to the order of sums. Rank, device and process group are accelerate's (`PartialState`); FSDP2 is torch's
`fully_shard`, because accelerate's own knows it on accelerators only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from grpo_training.config import ConfigError, TrainConfig
from grpo_training.models.loading import decoder_layers

T = TypeVar("T")
Strategy = Literal["single", "ddp", "fsdp2"]


@dataclass(frozen=True, slots=True)
class RankGroups:
    """What a rank takes of a step. prompts: places of its groups among the step's. rows: (S,) places of their completions."""

    prompts: list[int]
    rows: Tensor


class World:
    """One process among `size`; `rank` 0 is the one that writes."""

    def __init__(self, strategy: Strategy, rank: int, size: int, device: torch.device | None) -> None:
        """device: None leaves it to model.device."""
        self.strategy: Strategy = strategy
        self.rank = rank
        self.size = size
        self.device = device
        self._root: nn.Module | None = None
        self._ends_group = False  # a group that the caller made is the caller's to end

    @classmethod
    def join(cls, config: TrainConfig) -> World:
        """The processes that torchrun or `accelerate launch` started. Raises ConfigError for what cannot work with several."""
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls("single", 0, 1, None)
        strategy = _strategy(config)
        if strategy == "fsdp2" and config.collapse.every:
            raise ConfigError("collapse.every reads whole weights and gradients, which FSDP2 cuts: set it to 0")
        if strategy == "fsdp2" and config.rollout.resample:
            raise ConfigError(
                "rollout.resample is each process's own, and FSDP2 samples together: set it to 0, or use DDP"
            )
        # A step waits for the server for so long; the other ranks must not take that for a death.
        patience = timedelta(seconds=config.reference.max_wait) + timedelta(minutes=30)
        theirs = dist.is_initialized()
        state = PartialState(cpu=config.model.device == "cpu", timeout=patience)
        world = cls(strategy, state.process_index, state.num_processes, state.device)
        world._ends_group = not theirs
        world.groups(config, 0)  # refuses a batch that cannot be cut
        return world

    @property
    def main(self) -> bool:
        return self.rank == 0

    def groups(self, config: TrainConfig, rank: int | None = None) -> RankGroups:
        """What `rank` (this one) takes: of every portion the same number of whole groups."""
        prompts, portions = config.rollout.prompts_per_step, config.trainer.portions
        each, rest = divmod(prompts, portions * self.size)
        if rest:
            trainer = config.trainer
            raise ConfigError(
                f"rollout.prompts_per_step={prompts} cannot be shared by {self.size} processes with "
                f"trainer.gradient_accumulation={trainer.gradient_accumulation} and trainer.minibatches={trainer.minibatches}: "
                f"make it a multiple of {portions * self.size}"
            )
        rank = self.rank if rank is None else rank
        mine = [(i * self.size + rank) * each + j for i in range(portions) for j in range(each)]
        rows = torch.tensor(mine)[:, None] * config.rollout.group_size + torch.arange(config.rollout.group_size)
        return RankGroups(mine, rows.flatten())

    def wrap(self, model: PreTrainedModel) -> None:
        """Give the model to DDP or FSDP2. Its parameters are others afterwards under FSDP2: make the optimizer from them."""
        if self.strategy == "single":
            return
        root = _Root(model)
        if self.strategy == "ddp":
            gpu = [self.device] if self.device is not None and self.device.type != "cpu" else None
            # Each rank computes the same buffers for itself.
            self._root = DistributedDataParallel(root, device_ids=cast(Any, gpu), forward_sync_buffers=False)
            return
        for layer in decoder_layers(model):
            fully_shard(layer)
        self._root = cast(nn.Module, fully_shard(root))

    def forward(self, work: Callable[[], T], *, last: bool = True) -> T:
        """Run what reads the weights and will be differentiated. last: of the portions before a step of the optimizer."""
        if self._root is None:
            return work()
        waits = isinstance(self._root, DistributedDataParallel) and not last
        with cast(DistributedDataParallel, self._root).no_sync() if waits else nullcontext():
            return self._root(work)

    def backward(self, loss: Tensor) -> None:
        """Add this rank's share of the step's loss; DDP and FSDP2 average gradients, and shares are to be summed."""
        (loss * self.size if self.size > 1 else loss).backward()

    @torch.no_grad()
    def generate(self, work: Callable[[], T]) -> T:
        """Run what reads the weights as often as it needs, other ranks more or less often: FSDP2 gathers them once before.

        Each device must hold the whole model in the meantime.
        """
        if not isinstance(self._root, FSDPModule):
            return work()
        self._root.set_reshard_after_forward(False)
        try:
            return cast(nn.Module, self._root)(work)
        finally:
            self._root.set_reshard_after_forward(True)
            self._root.set_reshard_after_forward(False, recurse=False)  # backward begins with the head: keep it
            for module in cast(nn.Module, self._root).modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def sum(self, values: Tensor) -> Tensor:
        """Summed over the ranks, in fp64; on CPU."""
        return self._gathered(values).sum(0)

    def values(self, mine: Tensor) -> Tensor:
        """(N,) values of this rank, any number -> (M,) of all ranks, in the order of ranks; fp64, on CPU."""
        counts = [int(n) for n in self._gathered(torch.tensor([len(mine)])).flatten()]
        padded = torch.zeros(max(counts), dtype=torch.float64, device=mine.device)
        padded[: len(mine)] = mine.detach()
        parts = self._gathered(padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def maxima(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The largest of each figure over the ranks, which have the same ones in the same order."""
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        return dict(zip(figures, self._gathered(values).amax(0).tolist(), strict=True))

    def rows(self, mine: Tensor, config: TrainConfig) -> Tensor:
        """(S, K) fp64 on CPU: one row a completion of the whole step, from this rank's (S / size, K)."""
        gathered = self._gathered(mine).flatten(0, 1)
        order = torch.cat([self.groups(config, rank).rows for rank in range(self.size)])
        return torch.empty_like(gathered).index_copy_(0, order, gathered)

    def agree(self, facts: Sequence[object], complaint: str) -> None:
        """ConfigError(complaint) unless every rank says the same."""
        digest = hashlib.sha256(repr(list(facts)).encode()).digest()
        told = self._gathered(torch.tensor(list(digest[:8])))
        if not bool((told == told[0]).all()):
            raise ConfigError(complaint)

    def leave(self) -> None:
        """End the process group that `join` made; the run is over."""
        if self._ends_group:
            PartialState().destroy_process_group()

    def _gathered(self, values: Tensor) -> Tensor:
        """(size, ...) fp64 on CPU, in the order of ranks."""
        mine = values.detach().double()
        if self.size == 1:
            return mine.cpu()[None]
        mine = mine.to(self.device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts).cpu()


class _Root(nn.Module):
    """The outermost module, whose hooks DDP and FSDP2 live on: whatever reads weights runs inside its forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


def is_main_process() -> bool:
    """Whether this process writes and shows anything, by what the launcher says."""
    return int(os.environ.get("RANK", "0")) == 0


def _strategy(config: TrainConfig) -> Strategy:
    def told(name: str) -> bool:
        return os.environ.get(name, "false").lower() in ("1", "true")

    if told("ACCELERATE_USE_DEEPSPEED") or told("ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError("grpo-train runs under DDP and FSDP2: launch it without DeepSpeed or Megatron-LM")
    if told("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise ConfigError("grpo-train runs under FSDP2, not FSDP1: accelerate launch --use_fsdp --fsdp_version 2")
        if config.distributed.strategy == "ddp":
            raise ConfigError("distributed.strategy=ddp, but the launcher says FSDP: make the two agree")
        return "fsdp2"
    return "fsdp2" if config.distributed.strategy == "fsdp2" else "ddp"
