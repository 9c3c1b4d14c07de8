"""Memory: how it is known that it ran out, how large a batch it allows, and where the weights go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_client.models.demo import ModelSource
from grpo_server.engine.config import EngineConfig
from grpo_server.engine.device import Cpu
from grpo_server.engine.loading import placement_on
from grpo_server.engine.memory import batch_limits, is_out_of_memory

GIB = 2**30


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 7 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_memory_that_ran_out_is_known_in_every_disguise(error: BaseException) -> None:
    assert is_out_of_memory(error)
    wrapped = RuntimeError("backend='inductor' raised")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448"),
        ValueError("out of memory"),
        RuntimeError("size mismatch"),
    ],
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


class Free(Cpu):
    def __init__(self, kind: str, free: int) -> None:
        super().__init__()
        self.type, self._free = kind, free

    def free_bytes(self) -> int:
        return self._free


@pytest.mark.parametrize(
    ("kind", "free", "tokens"),
    [("cpu", 64 * GIB, 6144), ("cuda", 60 * GIB, 32_768), ("cuda", 2 * GIB, 11_264), ("cpu", 2**20, 3328)],
)
def test_a_batch_is_as_large_as_speed_asks_for_and_memory_holds(kind: str, free: int, tokens: int) -> None:
    """160 KB a token, as a model of 7B has in bfloat16."""
    limits = batch_limits(EngineConfig("m"), Free(kind, free), 160_768)
    assert limits.tokens == tokens
    assert limits.nbytes == max(512 * 2**20, int(0.85 * free))


def test_what_was_asked_for_stands() -> None:
    asked = EngineConfig("m", max_batch_tokens=77, max_batch_bytes=99)
    limits = batch_limits(asked, Free("cuda", GIB), 1000)
    assert (limits.tokens, limits.nbytes) == (77, 99)
    # ranks do not ask each other what is free
    shared = EngineConfig("m", tensor_parallel=True)
    assert batch_limits(shared, Free("cuda", GIB), 1000).tokens == batch_limits(shared, Free("cuda", 9 * GIB), 9).tokens


def test_free_memory_is_that_of_machine_or_container(tmp_path: Path) -> None:
    assert Cpu(tmp_path).free_bytes() == sys.maxsize
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    3000 kB\n")
    assert Cpu(tmp_path).free_bytes() == 3000 * 1024
    cgroup = tmp_path / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    for name, text in (
        ("memory.max", "max\n"),
        ("memory.current", "500000\n"),
        ("memory.stat", "inactive_file 100000\n"),
    ):
        (cgroup / name).write_text(text)
    assert Cpu(tmp_path).free_bytes() == 3000 * 1024
    (cgroup / "memory.max").write_text("1000000\n")
    assert Cpu(tmp_path).free_bytes() == 600_000
    (cgroup / "memory.max").unlink()
    (cgroup / "memory").mkdir()
    for name, text in (
        ("memory.limit_in_bytes", "900000"),
        ("memory.usage_in_bytes", "500000"),
        ("memory.stat", "total_inactive_file 7"),
    ):
        (cgroup / "memory" / name).write_text(text)
    assert Cpu(tmp_path).free_bytes() == 400_007


def test_weights_go_straight_to_a_gpu() -> None:
    gpu, plain, gguf = torch.device("cuda:1"), ModelSource("m", None), ModelSource("m", "m.gguf")
    config: Any = EngineConfig("m")
    assert placement_on(gpu, config, plain, 1) == {"device_map": {"": gpu}}
    assert placement_on(gpu, EngineConfig("m", device_map="auto"), plain, 1) == {"device_map": "auto"}
    assert placement_on(gpu, config, gguf, 1) == {}
    assert placement_on(torch.device("cpu"), config, plain, 1) == {}
    assert set(placement_on(gpu, config, plain, 2)) == {"distributed_config"}
