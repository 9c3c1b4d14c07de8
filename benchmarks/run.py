"""The main table: the server beside its peers, interleaved in one run, as ratios.

    python -m benchmarks.run                      all workloads, three rounds, float32 peers
    python -m benchmarks.run --dtypes bf16 fp32   peers in bfloat16 too (slow on CPUs without bfloat16 units)
    python -m benchmarks.run --workloads smoke --rounds 1 --output /tmp/bench

Every round asks every contender the same tokens, one after the other, so that a machine that changes speed changes it for
all of them. Figures are medians over rounds; ratios are medians of the ratios of one round. Writes results.json and
throughput.png into the output directory.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from . import contenders
from .workloads import WORKLOADS, client_tokens

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(stack: ExitStack, dtypes: list[str], modes: list[str], vllm_url: str | None) -> dict[str, contenders.Score]:
    """Name -> contender; those that are not installed are left out with a word."""
    made: dict[str, contenders.Score] = {}
    for mode in modes:
        url, _ = stack.enter_context(contenders.server("--mode", mode))
        made[f"server {mode}"] = stack.enter_context(contenders.over_http(url))
    made["engine exact"] = stack.enter_context(contenders.in_own_process("exact"))
    for name in dtypes:
        made[f"plain {name}"] = contenders.plain(DTYPES[name])
        try:
            made[f"trl {name}"] = contenders.trl(DTYPES[name])
        except ImportError as error:
            Console(stderr=True).print(f"without trl: {error}")
    if vllm_url:
        made["vllm"] = stack.enter_context(contenders.vllm(vllm_url))
    made["gemm fp32"] = contenders.gemm_floor(torch.float32)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=[w for w in WORKLOADS if w != "smoke"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--modes", nargs="+", choices=["exact", "invariant", "fast"], default=["exact", "fast"])
    parser.add_argument("--vllm-url", help="a vLLM server of the same weights, started by hand, as one more contender")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {w: {} for w in args.workloads}
    errors: dict[str, float] = {}
    with ExitStack() as stack, Progress() as progress:
        made = build(stack, args.dtypes, args.modes, args.vllm_url)
        bar = progress.add_task("measuring", total=len(made) * len(args.workloads) * args.rounds)
        for score in made.values():
            score(WORKLOADS["smoke"].request())  # warm
        for name in args.workloads:
            for round_ in range(args.rounds):
                request = WORKLOADS[name].request(round_)
                reference = None
                for who, score in made.items():
                    progress.update(bar, description=f"{name}: {who}")
                    start = time.perf_counter()
                    logprobs = score(request)
                    seconds[name].setdefault(who, []).append(time.perf_counter() - start)
                    reference = logprobs if reference is None else reference
                    if len(logprobs):
                        worst = float(np.abs(logprobs - reference).max())
                        errors[who] = max(errors.get(who, 0.0), worst)
                    progress.advance(bar)
    report(args, seconds, errors)


def report(args: argparse.Namespace, seconds: dict[str, dict[str, list[float]]], errors: dict[str, float]) -> None:
    """The table, results.json and the plot."""
    console = Console()
    rows = []
    for name, times in seconds.items():
        tokens = client_tokens(WORKLOADS[name].request(0))
        first = next(iter(times))
        table = Table("contender", "tokens/s", "seconds", f"{first} is", title=f"{name} ({tokens} client tokens)")
        for who, measured in times.items():
            median = statistics.median(measured)
            ratio = statistics.median(m / o for m, o in zip(measured, times[first], strict=True))
            table.add_row(who, f"{tokens / median:,.0f}", f"{median:.2f}", f"{ratio:.2f}x")
            rows.append({"workload": name, "contender": who, "seconds": measured, "ratio": ratio, "tokens": tokens})
        console.print(table)
    console.print({who: f"max |difference| {error:.1e}" for who, error in errors.items()})
    args.output.mkdir(parents=True, exist_ok=True)
    machine = {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "os": platform.platform(),
    }
    (args.output / "results.json").write_text(
        json.dumps({"machine": machine, "rows": rows, "errors": errors}, indent=1)
    )
    plot(rows, args.output / "throughput.png")
    console.print(f"written: {args.output}/results.json, {args.output}/throughput.png")


def plot(rows: list[dict], path: Path) -> None:
    """Grouped bars: client tokens a second, by workload; the line on each bar reaches from its slowest round to its fastest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["workload"] for r in rows))
    who = list(dict.fromkeys(r["contender"] for r in rows))
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    for i, contender in enumerate(who):
        own = {r["workload"]: r for r in rows if r["contender"] == contender}
        heights = np.array([own[n]["tokens"] / statistics.median(own[n]["seconds"]) for n in names])
        slowest = np.array([own[n]["tokens"] / max(own[n]["seconds"]) for n in names])
        fastest = np.array([own[n]["tokens"] / min(own[n]["seconds"]) for n in names])
        limit = {"color": "0.88", "edgecolor": "0.5", "hatch": "//"} if contender.startswith("gemm") else {}
        axes.bar(
            np.arange(len(names)) + i * 0.8 / len(who),
            heights,
            0.8 / len(who),
            label=contender,
            yerr=[heights - slowest, fastest - heights],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "0.25"},
            **limit,
        )
    axes.set_xticks(np.arange(len(names)) + 0.4 - 0.4 / len(who), names)
    axes.set_ylabel("client tokens per second")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=len(who), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
