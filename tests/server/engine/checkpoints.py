"""Tiny checkpoints on disk, whole and broken in one place each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 151
Tensors = dict[str, Tensor]


def llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    more = dict(vocab_size=VOCAB, max_position_embeddings=128, tie_word_embeddings=False)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **more, **overrides})).eval().requires_grad_(False)


def saved(directory: Path, **overrides: Any) -> Path:
    """A whole checkpoint of `llama(**overrides)`."""
    llama(**overrides).save_pretrained(directory)
    return directory


def with_tensors(directory: Path, change: Callable[[Tensors], Tensors], file: str = "model.safetensors") -> Path:
    """The checkpoint with its tensors changed."""
    save_file(change(load_file(directory / file)), directory / file, metadata={"format": "pt"})
    return directory


def with_config(directory: Path, file: str = "config.json", **values: Any) -> Path:
    """The checkpoint with these values in its config."""
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return directory


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if not any(part in n for part in parts)}


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + n: t for n, t in tensors.items()}


def also(**more: Tensor) -> Callable[[Tensors], Tensors]:
    """Keyword names with __ for a dot."""
    return lambda tensors: {**tensors, **{n.replace("__", "."): t for n, t in more.items()}}


def changed(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: change(t).contiguous() if part in n else t for n, t in tensors.items()}
