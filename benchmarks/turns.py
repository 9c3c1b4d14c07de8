"""Rollouts of several turns, as one tree and turn by turn: tokens computed, and time.

    python -m benchmarks.turns            the demo model, 4 turns x 8 samples, float32

Three ways to score the same tokens: every turn a group of its own in one request, whose common beginnings are computed once;
the same groups one after another, with nothing in common; and every rollout as one completion under a `completion_mask` that
leaves out what tools said. They take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from grpo_server.engine import EngineConfig, Piece, load_engine
from rich.console import Console
from rich.table import Table

from .workloads import TURNS, Turns


def every_turn(work: Turns) -> list[Piece]:
    return [Piece(g.prompt, g.completions, 1.0) for g in work.request().groups]


def whole_rollouts(work: Turns) -> list[Piece]:
    """One prompt, and each sample's turns with what tools said between them as one completion."""
    groups = work.request().groups
    last = groups[-work.samples :]
    rollouts = [np.concatenate([g.prompt, *g.completions])[work.prompt :] for g in last]
    one = [True] * work.completion + [False] * work.tool
    mask = np.array((one * work.turns)[: len(rollouts[0])])
    return [Piece(groups[0].prompt, tuple(rollouts), 1.0, completion_mask=(mask,) * len(rollouts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    engine = load_engine(EngineConfig(args.model, mode="fast", dtype="float32"))

    def run(batches: Sequence[Sequence[Piece]]) -> tuple[int, np.ndarray]:
        scores = [engine.compute(engine.prepare(pieces)) for pieces in batches]
        logprobs = [p.logprobs[np.isfinite(p.logprobs)] for s in scores for p in s.pieces]
        return sum(s.computed_tokens for s in scores), np.concatenate(logprobs)

    turns, rollouts = every_turn(TURNS), whole_rollouts(TURNS)
    ways: dict[str, Callable[[], tuple[int, np.ndarray]]] = {
        "one request of every turn": lambda: run([turns]),
        "turn by turn": lambda: run([[piece] for piece in turns]),
        "whole rollouts under a mask": lambda: run([rollouts]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, tuple[int, np.ndarray]] = {}
    for _ in range(args.rounds):
        for name, score in ways.items():
            start = time.perf_counter()
            found[name] = score()
            seconds[name].append(time.perf_counter() - start)
    table = Table("way", "tokens computed", f"of the tree's {TURNS.tree_tokens}", "seconds", "asked tokens/s")
    asked = TURNS.samples * TURNS.turns * TURNS.completion
    for name, (computed, _) in found.items():
        median = statistics.median(seconds[name])
        share = f"{computed / TURNS.tree_tokens:.3f}"
        table.add_row(name, str(computed), share, f"{median:.2f}", f"{asked / median:,.0f}")
    Console().print(table)
    together, apart = (found[name][1] for name in list(ways)[:2])
    Console().print(f"largest difference between the first two: {np.abs(together - apart).max():.1e} nats")


if __name__ == "__main__":
    main()
