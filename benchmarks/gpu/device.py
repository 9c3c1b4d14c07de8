"""What ran: the GPU, the driver's and the libraries' versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator

import torch

from .bench import Bench
from .stages import Line


def run(bench: Bench) -> Iterator[Line]:
    line: Line = {"torch": torch.__version__, "python": platform.python_version(), "dtype": str(bench.dtype)[6:]}
    for name in ("triton", "transformers", "liger-kernel"):
        found = importlib.util.find_spec(name.replace("-", "_")) is not None
        line[name] = importlib.metadata.version(name) if found else None
    if bench.on_cuda:
        gpu = torch.cuda.get_device_properties(bench.device)
        line |= {
            "gpu": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    yield line
