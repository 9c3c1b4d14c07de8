"""What must be said before torch is imported, because its libraries read it once, at their first matrix product."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import MutableMapping
from pathlib import Path

from .config import ModeChoice

# Rounds that an idle worker thread spins before it sleeps, tens of microseconds: as long as it is from one operation of a
# forward to the next. Each wait that is longer takes the core from whoever could use it, a competitor or the very thread that
# is waited for, and the scheduler then lets the spinner wait when there is work: beside other processes a request took ten
# times as long at fifty times as many rounds.
SPIN_ROUNDS = 1000

# vLLM's and PyTorch's names and values: no workspace, no partial sums to be added up in an order that depends on the shape.
WITHOUT_SPLIT_K = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
# Batches are of all sizes: segments that grow in place leave no holes that the next, larger batch does not fit into.
ALLOCATOR = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"}


def set_environment(
    mode: ModeChoice,
    threads: int | None = None,
    env: MutableMapping[str, str] = os.environ,
    *,
    share_cores: bool = False,
    root: Path = Path("/"),
    terminal: bool | None = None,
) -> None:
    """Set the process environment for `mode`; what the operator has set already stays, unless it contradicts the mode.

    share_cores: other processes compute on these cores all the time. root: where proc and sys are. terminal: whether somebody
    looks at stderr; None: look whether it is one.

    exact, invariant: a row of a product shall have the same bits whatever the number of rows and threads. MKL is asked for
    conditional numerical reproducibility in strict form, with the widest instructions that the CPU has, because it accepts no
    strict mode for "whatever is there". cuBLAS gets workspaces too small to split the sum of a product over several blocks.
    exact: and cuBLAS is not to round float32 to TF32, whatever the driver's variable says.
    """
    if mode != "fast":
        env.setdefault("MKL_CBWR", f"{_widest_vectors()},STRICT")
        for name, value in WITHOUT_SPLIT_K.items():
            env.setdefault(name, value)
    if mode == "exact" and TF32_OVERRIDE in env:
        env[TF32_OVERRIDE] = "0"
    if not ALLOCATOR & env.keys():
        env["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    quota = _quota(root)
    if threads is None and quota is not None and quota < _cores():
        threads = max(
            1, int(quota)
        )  # more threads than that are stopped in the middle of their work, and the others wait
    if threads is not None:
        env.setdefault("OMP_NUM_THREADS", str(threads))
    # of GNU's OpenMP, which torch brings on Linux and which reads it once: no value that is right for idle cores alone will do
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.setdefault("GOMP_SPINCOUNT", "0" if share_cores else str(SPIN_ROUNDS))
    # the service encodes in threads of its own; the tokenizer's fork guard would only warn
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not (sys.stderr.isatty() if terminal is None else terminal):
        # A bar that is drawn into a pipe whose reader has gone keeps tqdm's lock, and with it every thread that lets go of a
        # bar: a server would answer nobody, and no signal would end it. In a file of logs bars are noise.
        env.setdefault("TQDM_DISABLE", "1")
        env.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _widest_vectors() -> str:
    if platform.machine() not in ("x86_64", "AMD64"):
        return "COMPATIBLE"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "AVX512" if "avx512f" in flags else "AVX2"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    """Cores that the container may use, by its cgroup (version 2, then 1); None: as many as there are."""
    unified, legacy = root / "sys/fs/cgroup/cpu.max", root / "sys/fs/cgroup/cpu"
    if unified.is_file():
        quota, period = unified.read_text().split()
    elif (legacy / "cpu.cfs_quota_us").is_file():
        quota, period = ((legacy / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
