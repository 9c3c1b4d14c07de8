"""How near the engine comes to the matrix products that it cannot avoid, and how far it leaves plain transformers behind.

    python -m benchmarks.limit                           fast and exact mode, one group and ragged groups: about five minutes
    python -m benchmarks.limit --modes fast --rounds 5
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.limit     as a processor without units for bfloat16

Each round runs, one after the other, the engine in a process of its own, the products alone and transformers on padded
micro-batches, all with the same tokens and in the type that the engine's mode takes on this machine. A round gives two ratios;
what is printed are their medians and ranges.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

from grpo_server.engine import environment

environment.set_environment("fast")

import torch  # noqa: E402
from grpo_numerics.heap import keep_freed_pages  # noqa: E402
from grpo_server.engine import EngineConfig  # noqa: E402
from grpo_server.engine.loading import choose_dtype  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from . import contenders  # noqa: E402
from .workloads import WORKLOADS, Workload, client_tokens  # noqa: E402

SHAPES = (Workload("1x16 512+128", 1, 16, (512, 512), (128, 128)), WORKLOADS["4x8 64..512+8..256"])


def measured(mode: str, rounds: int, table: Table, console: Console) -> None:
    """Add the rows of one mode to the table."""
    dtype = choose_dtype(EngineConfig(model="demo", mode=mode), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    products, plain = contenders.gemm_floor(dtype), contenders.plain(dtype)
    with contenders.in_own_process(mode) as engine:  # pyright: ignore[reportArgumentType]
        for way in (engine, products, plain):
            way(WORKLOADS["smoke"].request())
        for shape in SHAPES:
            seconds: list[list[float]] = []
            for round_ in range(rounds):
                request = shape.request(round_)
                seconds.append([_seconds(way, request) for way in (engine, products, plain)])
                console.print(f"{mode} {shape.name}: " + " ".join(f"{s:.2f} s" for s in seconds[-1]), style="dim")
            mine = statistics.median(s[0] for s in seconds)
            table.add_row(
                f"{mode}, {str(dtype).removeprefix('torch.')}",
                shape.name,
                f"{client_tokens(shape.request(0)) / mine:,.0f}",
                _spread([s[1] / s[0] * 100 for s in seconds], "{:.0f} %"),
                _spread([s[2] / s[0] for s in seconds], "{:.2f}x"),
            )


def _seconds(way: contenders.Score, request: object) -> float:
    start = time.perf_counter()
    way(request)  # pyright: ignore[reportArgumentType]
    return time.perf_counter() - start


def _spread(values: list[float], form: str) -> str:
    median, low, high = (form.format(f(values)) for f in (statistics.median, min, max))
    return f"{median} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=["fast", "exact"], default=["fast", "exact"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_freed_pages()
    console = Console()
    table = Table("mode", "groups", "client tokens/s", "of the products' speed", "plain transformers is slower by")
    table.title = f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    for mode in args.modes:
        measured(mode, args.rounds, table, console)
    console.print(table)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return " ".join([name, *(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)])


if __name__ == "__main__":
    main()
