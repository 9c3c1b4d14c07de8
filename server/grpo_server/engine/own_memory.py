"""Weights that are the process's own. safetensors maps a file, and a tensor that needs no conversion stays a window into it:
who overwrites the checkpoint then changes the hosted numbers, under their old fingerprint, and who cuts it off ends the
process.
"""

from __future__ import annotations

import itertools
import threading

import torch
from torch import Tensor, nn


def own_memory(model: nn.Module) -> None:
    """Copy every tensor on the CPU out of whatever file it may lie in, one after the other. Names and ties stay."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if type(tensor.data) is Tensor and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)


class Tenants:
    """Who has a model's weights: they are let go of when the last has left. Begins with one."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._count, self._lock = model, 1, threading.Lock()

    def enter(self) -> None:
        """One more has them. Raises ValueError when they are gone."""
        with self._lock:
            if not self._count:
                raise ValueError("the base of this adapter is not hosted any more")
            self._count += 1

    def leave(self) -> None:
        """One of those needs them no longer."""
        with self._lock:
            self._count -= 1
            last = not self._count
        if last:
            let_go(self._model)


def let_go(model: nn.Module) -> None:
    """Free the weights now: modules and hooks hold each other in circles, which the collector may not come to for hours."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name in tensors:
                tensors[name] = None
