"""What best tokens add to a whole scoring on a CPU: the engine in this process, the same tokens with and without them.

    OMP_NUM_THREADS=1 python -m benchmarks.top_k          the demo model, k = 16, 64, 256, each also with the mass outside
    python -m benchmarks.top_k --rounds 9 --k 64

The ways take turns. A ratio is taken within a round, of the seconds that this process computed, so that other work on the
machine counts for little; what is printed are medians and ranges.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from grpo_server.engine import environment

environment.set_environment("exact")

from grpo_numerics.heap import keep_freed_pages  # noqa: E402
from grpo_server.engine import EngineConfig, Piece, load_engine  # noqa: E402

from .workloads import Workload  # noqa: E402

SHAPE = Workload("1x8 512+128", 1, 8, (512, 512), (128, 128))


def ratios(rounds: int, ks: Sequence[int]) -> dict[str, list[float]]:
    """Seconds of each way over those without best tokens, a ratio a round."""
    keep_freed_pages()
    engine = load_engine(EngineConfig("demo", mode="exact"))
    plain = [Piece(g.prompt, g.completions, g.temperature) for g in SHAPE.request().groups]
    ways = {"none": plain}
    for k in ks:
        ways[f"{k}"] = [replace(piece, top_k=k) for piece in plain]
        ways[f"{k} and tail"] = [replace(piece, top_k=k, extras=frozenset({"tail"})) for piece in plain]
    found: dict[str, list[float]] = {way: [] for way in ways if way != "none"}
    for _ in range(rounds + 1):  # the first warms up
        seconds: dict[str, float] = {}
        for way, pieces in ways.items():
            start = time.process_time()
            engine.compute(engine.prepare(pieces))
            seconds[way] = time.process_time() - start
        for way, values in found.items():
            values.append(seconds[way] / seconds["none"])
    return {way: values[1:] for way, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64, 256])
    asked = parser.parse_args()
    out = sys.stdout
    out.write(f"{SHAPE.name} tokens\n\n| best tokens | added, % | range |\n|---|---:|---|\n")
    for way, values in ratios(asked.rounds, asked.k).items():
        low, middle, high = (100 * (x - 1) for x in (min(values), statistics.median(values), max(values)))
        out.write(f"| {way} | {middle:.1f} | {low:.1f} to {high:.1f} |\n")


if __name__ == "__main__":
    main()
