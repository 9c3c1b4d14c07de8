"""Gradient checkpointing: the same gradients, from layers that backward has computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from grpo_training.config import ConfigError
from grpo_training.models.recompute import recompute_layers
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel


def gradients(model: PreTrainedModel, policy: Policy, data: Rollout) -> dict[str, Tensor]:
    model.zero_grad()
    policy.logprobs(data).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    ids = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)).eval()


@pytest.mark.parametrize("way", ["packed", "plain"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_are_the_same(tiny: LlamaForCausalLM, ragged: Rollout, kind: str, way: str) -> None:
    model = copy.deepcopy(tiny) if kind == "llama" else gpt2()
    policy = Policy(model)
    assert policy.way == "packed"
    policy.way = way  # type: ignore[assignment]
    kept = gradients(model, policy, ragged)
    own = model.config._attn_implementation
    forwards: list[bool] = []
    layer = model.base_model.layers[0].mlp if kind == "llama" else model.base_model.h[0].mlp
    layer.register_forward_pre_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    recompute_layers(model)
    again = gradients(model, policy, ragged)
    assert forwards == [True, True]  # once in forward, once in backward
    assert again.keys() == kept.keys()
    for name, gradient in kept.items():
        assert torch.equal(again[name], gradient), name
    assert model.config._attn_implementation == own
    with torch.no_grad():
        policy.logprobs(ragged)
    assert len(forwards) == 3


def test_a_model_without_marked_layers_is_refused(tiny: LlamaForCausalLM, ragged: Rollout) -> None:
    model = copy.deepcopy(tiny)
    model.base_model.layers = torch.nn.ModuleList()
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        recompute_layers(model)
