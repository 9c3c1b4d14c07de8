"""Checkpoints that a killed run goes on from, bit for bit: safetensors and JSON, no pickle.

A checkpoint is a directory `step-000050` that holds the model in Hugging Face's own format (any tool can load it) or the
adapter in peft's, the optimizer's tensors in `optimizer.safetensors`, and everything that is not a tensor in
`state.json`. It is written under another name and renamed when it is complete, so one that exists is whole.

There is no state of random generators: everything random in step n follows from (seed, n).

What several processes have cut among them (FSDP2) is gathered, so that a checkpoint does not say how many they were, and
any number of them goes on from it.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_training.disk import whole_directory
from grpo_training.models.reading import read_tensors, unreadable
from grpo_training.models.weights import gathered, read_into, write
from grpo_training.sharding import cut_like, whole

_NAME = re.compile(r"step-(\d{6,})")
_TENSOR = "tensor:"


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a run must know to go on, beside model and optimizer.

    step: steps done. fingerprint: of the reference that they were measured against, None when none was asked.
    config: the run's configuration, as JSON values. data: fingerprints of what is asked, by task; None in a checkpoint that
    does not say. teachers: fingerprints by name; None where there are none.
    """

    step: int
    fingerprint: str | None
    config: dict[str, Any]
    data: dict[str, str] | None = None
    teachers: dict[str, str] | None = None


class Checkpoints:
    """The checkpoints of one run, in one directory."""

    def __init__(self, directory: Path, *, keep: int = 1, writes: bool = True) -> None:
        """writes: False on all processes but one. They take part in `save`, and leave the disk alone."""
        self.directory = directory
        self._keep = keep
        self._writes = writes

    def save(
        self,
        state: TrainerState,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: dict[str, Any],
        scheduler: dict[str, Any],
    ) -> Path:
        """Write a checkpoint and remove those beyond the `keep` latest. Returns its directory.

        optimizer, scheduler: their `state_dict()`s. With sharded weights every process must call it.
        """
        final = self.directory / f"step-{state.step:06d}"
        weights = gathered(model)
        tensors: dict[str, Tensor] = {}
        values = {
            "step": state.step,
            "fingerprint": state.fingerprint,
            "config": state.config,
            "data": state.data,
            "teachers": state.teachers,
            "optimizer": _take_out_tensors(optimizer, "optimizer", tensors),
            "scheduler": _take_out_tensors(scheduler, "scheduler", tensors),
        }
        if not self._writes:
            return final
        with whole_directory(final) as draft:
            write(model, draft, weights)
            tokenizer.save_pretrained(draft)
            save_file(tensors, draft / "optimizer.safetensors")
            (draft / "state.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        found = [(int(match[1]), path) for path in self.directory.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def forget(self) -> None:
        """Remove them all, and what a kill has left of one: a run that begins here anew must not be taken up from them."""
        if self._writes and self.directory.is_dir():
            for path in self.directory.glob("step-*"):
                shutil.rmtree(path)

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return next(iter(reversed(self.all())), None)


def load_checkpoint(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, scheduler: Any
) -> TrainerState:
    """Put a checkpoint's numbers into a model, an optimizer and a scheduler made as for a new run.

    Raises CheckpointError where it is not whole, cannot be read, or is of another model.
    """
    with unreadable(path):
        values: Any = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors = read_tensors(path / "optimizer.safetensors")
    read_into(model, path)
    optimizer.load_state_dict(_cut_states(_put_in_tensors(values["optimizer"], tensors), optimizer))
    scheduler.load_state_dict(_put_in_tensors(values["scheduler"], tensors))
    return TrainerState(
        values["step"], values["fingerprint"], values["config"], values.get("data"), values.get("teachers")
    )


def _cut_states(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state, each tensor of a weight's shape cut as the weight is."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    owner = dict(zip(numbers, params, strict=False))
    cut = {
        n: {
            k: cut_like(v, owner[n]) if isinstance(v, Tensor) and v.shape == owner[n].shape else v
            for k, v in of.items()
        }
        for n, of in state["state"].items()
    }
    return {**state, "state": cut}


def _take_out_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The same nest of dicts, lists and plain values as JSON can hold, each tensor moved to `tensors` under its path."""
    if isinstance(value, Tensor):
        tensors[name] = whole(value.detach()).contiguous()
        return f"{_TENSOR}{name}"
    if isinstance(value, dict):
        # JSON has string keys only: pairs keep integers integers.
        return {"pairs": [[k, _take_out_tensors(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_take_out_tensors(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint without pickle cannot hold")


def _put_in_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if not isinstance(value, dict):
        return value
    (kind, items), *_ = value.items()
    if kind == "pairs":
        return {k: _put_in_tensors(v, tensors) for k, v in items}
    return (tuple if kind == "tuple" else list)(_put_in_tensors(v, tensors) for v in items)
