"""What it costs to cut sequences where they part, and from how many common tokens on that pays (`packed/worth.py`).

    python -m benchmarks.forks            a few layers of the demo model, prompt 256, completions of 64

Completions that begin alike are computed with a cut behind the common tokens and without one, in turns. Seconds saved are
seconds a row x (rows saved - CALLS - MERGE x rows below), with the two constants fitted over the cases.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from grpo_numerics.heap import keep_freed_pages
from grpo_numerics.packed import worth
from grpo_server.engine.anatomy import anatomy
from grpo_server.engine.config import EngineConfig
from grpo_server.engine.contract import Piece
from grpo_server.engine.forwards import PackedForward
from grpo_server.engine.loading import load
from rich.console import Console
from rich.table import Table

PROMPT, COMPLETION = 256, 64


def pieces(completions: int, common: int) -> list[Piece]:
    rng = np.random.default_rng(0)
    stem, start = (rng.integers(3, 9999, n, dtype=np.int32) for n in (PROMPT, common))
    ends = [rng.integers(3, 9999, COMPLETION - common, dtype=np.int32) for _ in range(completions)]
    for i, end in enumerate(ends):
        end[0] = i  # here they part
    other = rng.integers(3, 9999, COMPLETION, dtype=np.int32)  # so that the prompt is cut off in both cases
    return [Piece(stem, (*(np.concatenate([start, end]) for end in ends), other), 1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed_pages()
    model = load(EngineConfig(args.model, mode="fast", dtype="float32")).model
    model.base_model.layers = model.base_model.layers[: args.layers]
    forward = PackedForward(model, anatomy(model), heights=None)
    table = Table("completions", "common tokens", "rows saved", "rows below", "saved, ms", "saved, rows")
    known: list[tuple[float, float, float]] = []
    for completions, common in ((4, 4), (4, 16), (16, 4), (32, 2)):
        asked = pieces(completions, common)
        seconds: dict[float, list[float]] = {0.0: [], 1e9: []}
        rows: dict[float, int] = {}
        for turn in range(args.rounds + 1):
            for price, times in seconds.items():
                worth.CALLS, worth.MERGE = (0.0, 0.0) if price == 0 else (PROMPT * completions - 1.0, 0.0)
                batch = forward.prepare(asked)
                rows[price] = batch.tokens
                start = time.perf_counter()
                with torch.inference_mode():
                    forward.rows(batch)
                if turn:  # the first warms
                    times.append(time.perf_counter() - start)
        saved = statistics.median(a - b for a, b in zip(seconds[1e9], seconds[0.0], strict=True))
        a_row = statistics.median(seconds[1e9]) / rows[1e9]
        below = completions * (COMPLETION - common - 1)
        fewer = rows[1e9] - rows[0.0]
        known.append((fewer - saved / a_row, 1.0, below))
        table.add_row(*map(str, (completions, common, fewer, below)), f"{saved * 1e3:.1f}", f"{saved / a_row:.1f}")
    costs, ones, below = map(np.array, zip(*known, strict=True))
    (calls, merge), *_ = np.linalg.lstsq(np.stack([ones, below], 1), costs, rcond=None)
    Console().print(table)
    Console().print(f"CALLS = {calls:.1f} rows, MERGE = {merge:.3f} rows a row below")


if __name__ == "__main__":
    main()
