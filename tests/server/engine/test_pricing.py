"""What a piece is said to take is what the allocator sees, within a tenth."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from grpo_server.engine.config import EngineConfig
from grpo_server.engine.contract import Piece
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from torch.profiler import ProfilerActivity, profile
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCAB = 9001
LLAMA = dict(
    vocab_size=VOCAB, hidden_size=96, intermediate_size=352, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=1, head_dim=32, max_position_embeddings=4096,
)  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "gpt2": ("gpt2", dict(vocab_size=VOCAB, n_embd=96, n_layer=2, n_head=3, n_positions=4096)),
}
SHAPES = [(16, 2, 16), (200, 4, 64), (600, 1, 3), (300, 8, 200), (64, 1, 1500), (1024, 2, 600)]
ASKED = ["nothing", "extras", "top_k", "token_ids", "stablemax"]


def engine_of(name: str, dtype: torch.dtype) -> TorchEngine:
    torch.manual_seed(0)
    kind, sizes = MODELS[name]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes)).eval().requires_grad_(False).to(dtype)
    mode = "exact" if dtype == torch.float32 else "fast"
    config = EngineConfig(model="tiny", mode=mode, dtype=str(dtype).removeprefix("torch."), max_batch_tokens=1024)  # type: ignore[arg-type]
    return TorchEngine(config, Loaded(model, None, None))  # type: ignore[arg-type]


def piece_of(rng: np.random.Generator, shape: tuple[int, int, int], asked: str) -> Piece:
    prompt, count, length = shape
    more: dict[str, Any] = {
        "nothing": {},
        "extras": dict(extras=frozenset({"entropy", "logsumexp", "rank"})),
        "top_k": dict(top_k=64),
        "token_ids": dict(token_ids=tuple(rng.integers(0, VOCAB, (length, 48), dtype=np.int32) for _ in range(count))),
        "stablemax": dict(normalizer="stablemax"),
    }[asked]
    completions = tuple(rng.integers(0, VOCAB, (count, length), dtype=np.int32))
    return Piece(rng.integers(0, VOCAB, prompt, dtype=np.int32), completions, 0.9, **more)


def recorded_peak(engine: TorchEngine, piece: Piece) -> int:
    """By the allocator's own events."""
    batch = engine.prepare([piece])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        engine.compute(batch)
    results = record.profiler.kineto_results  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def numpys_peak(engine: TorchEngine, piece: Piece) -> int:
    """What numpy takes for the best tokens, of which torch's allocator knows nothing."""
    if not piece.top_k:
        return 0
    peaks: list[int] = []
    for asked in (piece, replace(piece, top_k=0)):
        batch = engine.prepare([asked])
        tracemalloc.start()
        engine.compute(batch)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peaks[0] - peaks[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_price_is_the_recorded_peak(name: str, dtype: torch.dtype) -> None:
    engine, rng = engine_of(name, dtype), np.random.default_rng(0)
    off: list[str] = []
    for shape in SHAPES:
        for asked in ASKED:
            piece = piece_of(rng, shape, asked)
            peak, price = recorded_peak(engine, piece), engine.bytes_of(piece)
            least, most = peak, peak + numpys_peak(engine, piece)
            if peak > 1.05 * recorded_peak(engine, replace(piece, top_k=0)):
                least = most  # the head's, in which numpy takes its part
            if not 0.9 * least <= price <= 1.1 * most:
                off.append(f"{shape} {asked}: {price} for {least} to {most}, {price / most:.2f}")
    assert not off, "\n".join(off)
