"""A model of the shape, Qwen2.5's architecture with random weights made on the device: nothing is downloaded."""

from __future__ import annotations

import torch
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.config import Mode
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from .bench import Bench, Shape


def config_of(shape: Shape) -> Qwen2Config:
    """Qwen2.5's configuration at this size."""
    return Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(4096, shape.prompt + shape.completion),
        rope_theta=1e6,
        tie_word_embeddings=False,
    )


def random_model(bench: Bench) -> PreTrainedModel:
    """On the device, in its type, frozen."""
    torch.manual_seed(0)
    with bench.device:
        model = AutoModelForCausalLM.from_config(config_of(bench.shape), dtype=bench.dtype)
    return model.eval().requires_grad_(False)


def engine_of(bench: Bench, model: PreTrainedModel, mode: Mode, *, fused_layers: bool = True) -> TorchEngine:
    """The service's engine around it, probed as at a start; its batch holds the whole group."""
    rows = bench.shape.client_tokens
    model.set_attn_implementation("sdpa")  # another engine may have left its own
    config = EngineConfig(model="random", mode=mode, max_batch_tokens=rows, fused_layers=fused_layers)
    return TorchEngine(config, Loaded(model, None, None))  # pyright: ignore[reportArgumentType]


def piece_of(bench: Bench, seed: int = 0) -> Piece:
    """The shape's group."""
    prompt, completions = bench.group(seed)
    return Piece(prompt, completions, temperature=1.0)
