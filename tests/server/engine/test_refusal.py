"""A model that no path can serve: whether its numbers or its architecture are to blame, in words."""

from __future__ import annotations

import pytest
import torch
from grpo_server.engine import EngineConfig
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from transformers import LlamaConfig, LlamaForCausalLM


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(**sizes, vocab_size=151, max_position_embeddings=128)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def refused(model: LlamaForCausalLM) -> str:
    with pytest.raises(ValueError, match=r"^model: ") as caught:
        TorchEngine(EngineConfig(model="tiny"), Loaded(model, None, None))
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float) -> None:
    model = llama()
    model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    told = refused(model)
    assert "its weights hold NaN or infinity, in model.layers.1.mlp.up_proj.weight" in told
    assert "architecture" not in told


def test_finite_weights_whose_forward_overflows_blame_the_precision() -> None:
    model = llama()
    model.lm_head.weight.fill_(3e38)
    told = refused(model)
    assert "its own forward gives NaN or infinity in float32, although its weights are finite" in told
    assert "architecture" not in told


def test_an_architecture_that_no_path_reproduces_is_told_so() -> None:
    model = llama()
    ask, calls = model.forward, iter(range(10**6))

    def another_answer_each_time(*args, **kwargs):
        out = ask(*args, **kwargs)
        out.logits = out.logits + next(calls) * torch.arange(151)
        return out

    model.forward = another_answer_each_time
    assert "use another architecture" in refused(model)
