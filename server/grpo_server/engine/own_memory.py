"""Weights that are the process's own. safetensors maps a file, and a tensor that needs no conversion stays a window into it:
who overwrites the checkpoint then changes the hosted numbers, under their old fingerprint, and who cuts it off ends the
process.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


def own_memory(model: nn.Module) -> None:
    """Copy every tensor on the CPU out of whatever file it may lie in, one after the other. Names and ties stay."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if type(tensor.data) is Tensor and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)


def let_go(model: nn.Module) -> None:
    """Free the weights now: modules and hooks hold each other in circles, which the collector may not come to for hours."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name in tensors:
                tensors[name] = None
