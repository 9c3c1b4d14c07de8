"""What the engine asks of the hardware under it, as one small value: tests put another one there.

Everything else about a device is torch's own business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .allocations import watched_peak


class Device(Protocol):
    """type: as `torch.device.type`. compiles: the first call of a kernel takes much longer than the next."""

    type: str
    compiles: bool

    def free_bytes(self) -> int:
        """What another batch could still take."""
        ...

    def release(self) -> None:
        """Give back what the allocator keeps for later."""
        ...

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a (M, K) times b (K, N), computed here."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """Bytes that `work` takes at its peak, beside what is held before."""
        ...

    def cards(self) -> Sequence[str]:
        """The name of each card, as its driver says it; the host is one, too."""
        ...


class Cpu:
    """The host. root: where proc and sys are."""

    type, compiles = "cpu", False

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def free_bytes(self) -> int:
        """Of the machine or of the container, whichever has less."""
        return min(_available(self._root / "proc/meminfo"), _in_container(self._root / "sys/fs/cgroup"))

    def release(self) -> None:
        """Freed memory is at hand already."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def peak(self, work: Callable[[], object]) -> int:
        return watched_peak(work)

    def cards(self) -> Sequence[str]:
        return ["cpu"]


class Cuda:
    """GPUs: free is what the fullest of them has, for every one of them holds its share of a batch."""

    type, compiles = "cuda", True

    def __init__(self, devices: frozenset[torch.device]) -> None:
        self._devices = devices

    def free_bytes(self) -> int:
        return min(_free_on(device) for device in self._devices)

    def release(self) -> None:
        torch.cuda.empty_cache()

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        device = min(self._devices, key=str)
        return a.to(device) @ b.to(device)

    def peak(self, work: Callable[[], object]) -> int:
        """Of the GPU where it is largest."""
        before = {device: torch.cuda.memory_allocated(device) for device in self._devices}
        for device in self._devices:
            torch.cuda.reset_peak_memory_stats(device)
        work()
        return max(torch.cuda.max_memory_allocated(device) - held for device, held in before.items())

    def cards(self) -> Sequence[str]:
        return [torch.cuda.get_device_name(device) for device in self._devices]


def device_of(model: nn.Module) -> Device:
    """The hardware under a loaded model."""
    gpus = frozenset(p.device for p in model.parameters() if p.device.type == "cuda")
    return Cuda(gpus) if gpus else Cpu()


def _free_on(device: torch.device) -> int:
    """What the driver has left, and what torch holds but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _available(meminfo: Path) -> int:
    """Of the whole machine, by the kernel's own estimate; without Linux no limit is known."""
    if not meminfo.is_file():
        return sys.maxsize
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024


def _in_container(cgroup: Path) -> int:
    """Left of the container's limit (cgroup version 2, then 1), the page cache not counted; no limit: as much as you like."""
    for limit, used, statistics, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        if not (cgroup / limit).is_file():
            continue
        text = (cgroup / limit).read_text().strip()
        if text == "max":
            return sys.maxsize
        counts = dict(line.split() for line in (cgroup / statistics).read_text().splitlines())
        return max(0, int(text) - int((cgroup / used).read_text()) + int(counts.get(cache, 0)))
    return sys.maxsize
