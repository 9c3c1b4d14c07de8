"""Adapters of one base against the base itself: tokens a second, in turns, in one process.

    python -m benchmarks.adapters            the demo model, 8 adapters of rank 16 on every linear layer, exact mode

One request of a few groups for each adapter. The base computes all of them (the bar), in one batch and in a batch a request;
the adapters compute theirs, in one batch that they share and one after another. Scores of both are compared: in exact and
invariant mode they must have the same bits. A ratio is of one round; the median of the rounds counts. Seconds
of the processor are told beside those of the clock: on a machine that computes other things, too, they are what the work took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grpo_numerics.heap import keep_freed_pages
from grpo_server.engine.adapters.engine import AdaptedEngine
from grpo_server.engine.config import EngineConfig
from grpo_server.engine.contract import Addition, Piece
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.environment import set_environment
from grpo_server.engine.loading import load
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

Way = Callable[[], list[np.ndarray]]


def write_adapter(directory: Path, engine: TorchEngine, rank: int, seed: int) -> Path:
    """Random numbers on every linear layer but the head, as peft would save them."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in engine._model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is engine._model.get_output_embeddings():
            continue
        inputs, outputs = module.weight.shape[::-1] if isinstance(module, nn.Linear) else module.weight.shape
        tensors[f"base_model.model.{name}.lora_A.weight"] = (
            torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        )
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.01
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))
    return directory


def groups(rng: np.random.Generator, args: argparse.Namespace, vocab: int) -> list[Piece]:
    """One request."""

    def ids(n: int) -> np.ndarray:
        return rng.integers(3, vocab, n, dtype=np.int32)

    return [
        Piece(ids(args.prompt), tuple(ids(args.completion) for _ in range(args.samples)), 1.0)
        for _ in range(args.groups)
    ]


def computed(engine: Any, pieces: Sequence[Piece], whose: Sequence[Any] | None = None) -> list[np.ndarray]:
    batch = engine.prepare(pieces) if whose is None else engine.prepare(pieces, whose)
    return [scores.logprobs for scores in engine.compute(batch).pieces]


def _share(bar: Sequence[float], own: Sequence[float]) -> str:
    """Of the base's throughput, round by round: median, smallest, largest."""
    shares = [b / o for b, o in zip(bar, own, strict=True)]
    return f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--groups", type=int, default=2, help="of a request; one request an adapter")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--completion", type=int, default=32)
    parser.add_argument("--mode", default="exact")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    set_environment(args.mode)
    keep_freed_pages()
    config = EngineConfig(args.model, mode=args.mode, dtype=args.dtype)
    base = TorchEngine(config, load(config))
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        adapters: list[AdaptedEngine] = []
        for n in range(args.adapters):
            path = write_adapter(Path(work, str(n)), base, args.rank, n)
            engine = base.adapt(Addition(str(path), f"adapter-{n}"), lambda _: None)
            assert isinstance(engine, AdaptedEngine)
            adapters.append(engine)
        each = (time.perf_counter() - start) / args.adapters
    rng = np.random.default_rng(0)
    requests = [groups(rng, args, base.info.vocab_size) for _ in adapters]
    flat = [piece for request in requests for piece in request]
    whose = [engine for engine, request in zip(adapters, requests, strict=True) for _ in request]
    tokens = sum(piece.tokens for piece in flat)

    ways: dict[str, Way] = {
        "base, one batch": lambda: computed(base, flat),
        "adapters, one batch": lambda: computed(adapters[0], flat, whose),
        "base, a batch a request": lambda: [s for request in requests for s in computed(base, request)],
        "adapters, a batch a request": lambda: [
            s for engine, request in zip(adapters, requests, strict=True) for s in computed(engine, request)
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[np.ndarray]] = {}
    for _ in range(args.rounds):
        for name, way in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            found[name] = way()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    table = Table("way", "seconds", "tokens/s", "of the base's throughput", "by processor seconds")
    for name, times in seconds.items():
        bar = name.replace("adapters", "base")
        median = statistics.median(times)
        shares = [_share(measured[bar], measured[name]) for measured in (seconds, cpu_seconds)]
        table.add_row(name, f"{median:.2f}", f"{tokens / median:,.0f}", *(shares if name != bar else ("1", "1")))
    console = Console()
    console.print(table)
    together, apart = (found[name] for name in ("adapters, one batch", "adapters, a batch a request"))
    equal = all(np.array_equal(a, b) for a, b in zip(together, apart, strict=True))
    difference = max(float(np.abs(a - b).max()) for a, b in zip(together, apart, strict=True))
    console.print(
        f"scores in one batch and apart: {'the same bits' if equal else f'up to {difference:.1e} nats apart'}"
    )
    console.print(
        f"{args.adapters} adapters of rank {args.rank} on {base.info.model} ({base.info.dtype}, {base.info.mode}), "
        f"{tokens} tokens; an adapter takes {adapters[0].nbytes / 1e6:.1f} MB, and {each:.1f} s to load"
    )


if __name__ == "__main__":
    main()
