"""A whole reference at full size: client tokens a second, memory, where the time goes; next to the path without the attention
kernel and to what a padded trainer does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from grpo_server.engine import Piece
from grpo_server.engine.engine import TorchEngine
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from .bench import Bench, figure, tera
from .models import engine_of, piece_of, random_model
from .old_path import without_the_kernel
from .stages import Line

TOP = 10
MICRO_BATCH = 4


def run(bench: Bench) -> Iterator[Line]:
    start = time.perf_counter()
    model = random_model(bench)
    yield {"what": "weights", "seconds": figure(time.perf_counter() - start), "gib": bench.peak_gib()}
    start = time.perf_counter()
    engine = engine_of(bench, model, "fast", fused_layers=False)
    yield {"what": "start", "seconds": figure(time.perf_counter() - start), "tier": engine.info.tier}
    piece = piece_of(bench)
    scores = engine.compute(engine.prepare([piece])).pieces[0].logprobs
    yield {"what": "new path", **speed(bench, engine, piece)}
    yield {"what": "profile", "device_ms": top_ten(bench, engine, piece)}
    bench.free()
    padded_scores = padded(bench, model, piece)
    ms = bench.ms(lambda: padded(bench, model, piece), times=1)
    line = {"what": "padded, plain transformers", "ms": figure(ms), "client_tokens_per_s": rate(bench, ms)}
    differences = np.abs(padded_scores - scores)
    yield {**line, "peak_gib": bench.peak_gib(), "mean_difference_nats": figure(float(differences.mean()))}
    with without_the_kernel():
        yield {"what": "old path", **speed(bench, engine, piece, times=1)}
    fused = engine_of(bench, model, "fast")
    yield {"what": "layers fused", **speed(bench, fused, piece), "parts": patched(model)}


def patched(model: PreTrainedModel) -> int:
    """Modules that compute something else than their class says."""
    return sum("forward" in vars(module) for module in model.modules())


def rate(bench: Bench, ms: float) -> float:
    """Client tokens a second."""
    return figure(bench.shape.client_tokens / ms * 1e3)


def flop(bench: Bench, piece: Piece) -> float:
    """Of one batch: products of the body, attention, head."""
    s = bench.shape
    rows = piece.tokens
    side = s.heads * s.head_dim
    layer = 2 * s.hidden * (2 * side + 2 * s.kv_heads * s.head_dim + 3 * s.inner)
    pairs = s.prompt**2 / 2 + s.group * (s.prompt * s.completion + s.completion**2 / 2)
    head = 2 * s.group * s.completion * s.hidden * s.vocab
    return float(rows * s.layers * layer + 4 * side * s.layers * pairs + head)


def speed(bench: Bench, engine: TorchEngine, piece: Piece, times: int = 5) -> Line:
    """One batch, prepared beside, from begin to the answer on the host."""
    batch = engine.prepare([piece])
    bench.free()
    ms = bench.ms(lambda: engine.compute(batch), times=times)
    line: Line = {"mode": engine.info.mode, "ms": figure(ms), "client_tokens_per_s": rate(bench, ms)}
    return line | {"tflops": tera(flop(bench, piece), ms), "peak_gib": bench.peak_gib(), "bitwise": engine.info.bitwise}


def top_ten(bench: Bench, engine: TorchEngine, piece: Piece) -> dict[str, float]:
    """Milliseconds on the device of the kernels that take most of it."""
    batch = engine.prepare([piece])
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_cuda else [])]
    with profile(activities=kinds) as profiled:
        engine.compute(batch)
    by = "self_device_time_total" if bench.on_cuda else "self_cpu_time_total"
    events: list[Any] = sorted(profiled.key_averages(), key=lambda e: -getattr(e, by))
    return {e.key[:80]: round(getattr(e, by) / 1e3, 2) for e in events[:TOP]}


@torch.inference_mode()
def padded(bench: Bench, model: PreTrainedModel, piece: Piece) -> np.ndarray:
    """Every completion with its prompt, a few at a time, logits whole, float32 log-softmax: what a trainer does."""
    model.set_attn_implementation("sdpa")
    prompt = len(piece.prompt)
    rows = [np.concatenate([piece.prompt, c]) for c in piece.completions]
    found: list[torch.Tensor] = []
    for start in range(0, len(rows), MICRO_BATCH):
        ids = torch.from_numpy(np.stack(rows[start : start + MICRO_BATCH])).long().to(bench.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - prompt + 1).logits[:, :-1]
        for of_one, targets in zip(logits, ids[:, prompt:], strict=True):
            found.append(of_one.float().log_softmax(-1).gather(1, targets[:, None])[:, 0])
    return torch.cat(found).cpu().numpy()
