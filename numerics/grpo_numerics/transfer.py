"""Arrays on their way to a device: packed side by side where they are made, copied once, and nobody waits.

A copy from ordinary memory makes the host wait for the device, each time. So what a batch brings is put into one pinned buffer
while the device still works on the batch before, and goes over in one copy that is only queued.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Name = TypeVar("Name", bound=Hashable)

# bytes; what the widest vector load wants, and Triton looks for
_ALIGNMENT = 16


class Parcel(Generic[Name]):
    """Arrays by name, of any numpy types that torch knows; `on` gives them as tensors of the same shapes and types."""

    def __init__(self, arrays: Mapping[Name, npt.NDArray[np.generic]]) -> None:
        self._places: dict[Name, tuple[int, int, torch.dtype, tuple[int, ...]]] = {}
        size = 0
        for name, array in arrays.items():
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            self._places[name] = (size, size + array.nbytes, dtype, array.shape)
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        flat = np.zeros(
            size + _ALIGNMENT, np.uint8
        )  # never empty: a view of nothing has no stride to change its type by
        for array, (start, stop, *_) in zip(arrays.values(), self._places.values(), strict=True):
            flat[start:stop] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        buffer = torch.from_numpy(flat)
        self._buffer = buffer.pin_memory() if torch.cuda.is_available() else buffer
        self._there: dict[torch.device, dict[Name, Tensor]] = {}

    def on(self, device: torch.device) -> dict[Name, Tensor]:
        """The arrays as views of one tensor on the device; copied at the first call for it. Not to be written to."""
        if device not in self._there:
            flat = self._buffer if device.type == "cpu" else self._buffer.to(device, non_blocking=True)
            self._there[device] = {
                name: flat[start:stop].view(dtype).view(shape)
                for name, (start, stop, dtype, shape) in self._places.items()
            }
        return self._there[device]
