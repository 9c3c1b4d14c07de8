"""Random models for replicas."""

from __future__ import annotations

from pathlib import Path


def model(directory: Path, seed: int, *, hidden: int = 64, layers: int = 2) -> Path:
    """A Llama of 128 tokens, written into the directory; one of 256 by 4 takes some tens of milliseconds for 800 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
