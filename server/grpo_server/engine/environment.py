"""What must be said before torch is imported, because its libraries read it once, at their first matrix product."""

from __future__ import annotations

import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

from .config import Mode


def prepare(
    mode: Mode,
    threads: int | None = None,
    env: MutableMapping[str, str] = os.environ,
    *,
    share_cores: bool = False,
) -> None:
    """Set the process environment for `mode`; what the operator has set already stays.

    exact: MKL is asked for conditional numerical reproducibility in strict form, so that a row of a product has the same
    bits whatever the number of rows and threads. The widest instructions that the CPU has are named, because MKL accepts
    no strict mode for "whatever is there".
    """
    if mode == "exact":
        env.setdefault("MKL_CBWR", f"{_widest_vectors()},STRICT")
    if threads is not None:
        env.setdefault("OMP_NUM_THREADS", str(threads))
    # A worker thread that spins for long takes the core from the threads of this very process that answer HTTP. One that
    # sleeps between any two operations is woken thousands of times a forward. So it spins for about a millisecond (GNU's
    # OpenMP, which torch brings on Linux), then sleeps; at once where another process wants the core.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.setdefault("GOMP_SPINCOUNT", "0" if share_cores else "50000")
    # the service encodes in threads of its own; the tokenizer's fork guard would only warn
    env.setdefault("TOKENIZERS_PARALLELISM", "false")


def _widest_vectors() -> str:
    if platform.machine() not in ("x86_64", "AMD64"):
        return "COMPATIBLE"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "AVX512" if "avx512f" in flags else "AVX2"
