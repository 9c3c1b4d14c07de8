"""What makes the host wait for a device, counted."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.item", "aten.is_nonzero", "aten.masked_select")


class Waits(TorchDispatchMode):
    """Writes down each operator that reads a value on the host, or copies between devices and waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(func).startswith(READS):
            self.reads.append(str(func))
        to = [kwargs.get("device"), *args]
        device = next((d for d in to if isinstance(d, torch.device)), None)
        if str(func).startswith(("aten._to_copy", "aten.to.")) and device and device.type != args[0].device.type:
            queued = " queued" if kwargs.get("non_blocking") or any(a is True for a in args) else ""
            self.copies.append(f"{args[0].device.type} to {device.type}{queued}")
            if device.type == "cpu":
                return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **kwargs)
