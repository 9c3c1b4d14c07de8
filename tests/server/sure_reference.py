"""A tiny model whose next token is sure to every degree, as an engine that can be served, and the same in float64."""

from __future__ import annotations

import copy

import numpy as np
import torch
from grpo_server.engine import EngineConfig
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from transformers import AutoModelForCausalLM, LlamaConfig

VOCAB = 61
PROMPTS = [[1, 2, 3], [4]]
COMPLETIONS = [[list(range(5, 35)), [3]], [list(range(20, 60)), []]]


class Reference:
    def __init__(self) -> None:
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        model.lm_head.weight.normal_(std=4.0)
        self.model = copy.deepcopy(model).double()
        self.engine = TorchEngine(EngineConfig("tiny", served_name="tiny"), Loaded(model, None, None))

    def logprobs(self) -> np.ndarray:
        """(N, V) float64 over all tokens of COMPLETIONS."""
        rows = []
        for prompt, completions in zip(PROMPTS, COMPLETIONS, strict=True):
            for completion in completions:
                logits = self.model(torch.tensor([prompt + completion]), use_cache=False).logits[0]
                rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1).numpy())
        return np.concatenate(rows)
