"""What the stages share: the shape, the clock of a device, groups of random tokens, float64 references."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A model and a group: `group` completions of `completion` tokens on one prompt of `prompt`."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    group: int
    prompt: int
    completion: int
    head_rows: int

    @property
    def client_tokens(self) -> int:
        """Every completion with its prompt, as a client counts."""
        return self.group * (self.prompt + self.completion)


QWEN25_7B = Shape(3584, 18944, 28, 28, 4, 128, 152064, 16, 1024, 1024, 16384)
TINY = Shape(64, 96, 2, 4, 2, 16, 301, 3, 40, 12, 48)


@dataclass(frozen=True)
class Bench:
    """A device and what to run there. dtype: of weights and activations; deadline: on the monotonic clock."""

    device: torch.device
    shape: Shape
    dtype: torch.dtype
    tiny: bool
    deadline: float

    @classmethod
    def on(cls, device: str, tiny: bool, deadline: float) -> Bench:
        """Raises RuntimeError where torch does not see the device."""
        chosen = torch.device(device)
        if chosen.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("torch sees no GPU; --device cpu --tiny tries the script itself")
            torch.cuda.set_device(chosen)
        torch.manual_seed(0)
        dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
        return cls(chosen, TINY if tiny else QWEN25_7B, dtype, tiny, deadline)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left_s(self) -> float:
        """Seconds of the stage that are left."""
        return self.deadline - time.monotonic()

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers on the device, in its type."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * scale

    def ms(self, run: Callable[[], object], times: int = 8) -> float:
        """Median milliseconds of a call, after two that warm up, by the device's own clock."""
        for _ in range(1 if self.tiny else 2):
            run()
        return statistics.median(self._once(run) for _ in range(2 if self.tiny else times))

    def _once(self, run: Callable[[], object]) -> float:
        if not self.on_cuda:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def tokens(self, count: int, seed: int) -> np.ndarray:
        """(count,) int32 ids."""
        return np.random.default_rng(seed).integers(3, self.shape.vocab, count, dtype=np.int32)

    def group(self, seed: int = 0) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """A prompt and its completions."""
        s = self.shape
        return self.tokens(s.prompt, seed), tuple(self.tokens(s.completion, seed + 1 + i) for i in range(s.group))

    def free(self) -> None:
        """Give cached memory back before something large."""
        if self.on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Most memory in use since `free`."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.on_cuda else None


def tera(flop: float, ms: float) -> float:
    """TFLOP/s."""
    return round(flop / ms / 1e9, 1)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||, in float64."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def figure(value: float) -> float:
    """Three digits, as JSON can hold them."""
    return float(f"{value:.3g}") if math.isfinite(value) else -1.0
