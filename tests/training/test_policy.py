"""The policy's log-probs and their gradient: prompts computed once against every row by itself, over architectures."""

from __future__ import annotations

import pytest
import torch
from grpo_training.policy import Policy
from grpo_training.rollout import Rollout
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
)

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
LENGTHS = [4, 1, 6, 3]
SMALL = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def rollout() -> Rollout:
    ids = torch.randint(3, 80, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    zeros = torch.zeros(4, 6)
    return Rollout(PROMPTS, 2, ids.where(mask, 0), mask, zeros, zeros, mask[:, 0])


def by_row(model: PreTrainedModel, data: Rollout, temperature: float) -> Tensor:
    """Log-probs with gradient, one unpadded row at a time."""
    out = []
    for i, group in enumerate(data.completions()):
        for completion in group:
            logits = model(torch.tensor([data.prompts[i] + completion])).logits[0, len(data.prompts[i]) - 1 : -1]
            out.append((logits / temperature).log_softmax(-1)[torch.arange(len(completion)), completion])
    return torch.cat(out)


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SMALL))


def gemma2() -> PreTrainedModel:
    """Soft-capped logits and a sliding window shorter than the sequences."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=4,
            final_logit_softcapping=5.0,
            attn_implementation="eager",
            **SMALL,
        )
    )


def check(model: PreTrainedModel, policy: Policy) -> None:
    data = rollout()
    weights = torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(1))
    ours = policy.logprobs(data)
    assert not ours[~data.mask].any()
    model.zero_grad()
    (ours[data.mask] * weights).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs = by_row(model, data, policy.temperature)
    (theirs * weights).sum().backward()
    # Sums in another order: units in the last place of logits below 30, summed over a few dozen terms.
    torch.testing.assert_close(ours[data.mask], theirs, atol=5e-5, rtol=0)
    for name, p in model.named_parameters():
        assert p.grad is not None
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(grads[name], p.grad, atol=2e-5 * max(scale, 1.0), rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_llama(tiny: LlamaForCausalLM, temperature: float) -> None:
    policy = Policy(tiny, temperature=temperature)
    assert (policy.way, policy.fused) == ("packed", True)
    check(tiny, policy)
    policy.way = "plain"
    check(tiny, policy)
    policy.fused = False
    check(tiny, policy)
    tiny.zero_grad()


@pytest.mark.parametrize("make", [gpt2, gemma2])
def test_other_architectures(make) -> None:
    torch.manual_seed(0)
    model = make().eval()
    policy = Policy(model)
    assert (policy.way, policy.fused) == ("packed", True)
    check(model, policy)


def test_a_head_that_is_not_understood_is_left_to_the_model(tiny: LlamaForCausalLM, monkeypatch) -> None:
    """Fail closed: a model that does something unknown between embedding and logits keeps its own head."""
    original = type(tiny).forward

    def scaled(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(type(tiny), "forward", scaled)
    policy = Policy(tiny)
    assert (policy.way, policy.fused) == ("packed", False)
    check(tiny, policy)
    tiny.zero_grad()


def test_a_single_token(tiny: LlamaForCausalLM) -> None:
    data = rollout()
    one = Rollout(PROMPTS, 2, data.ids[:, :1], data.mask[:, :1], data.logprobs[:, :1], data.entropy[:, :1], data.ended)
    full = Policy(tiny).logprobs(data)
    torch.testing.assert_close(Policy(tiny).logprobs(one), full[:, :1], atol=5e-5, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("way", ["packed", "plain"])
def test_entropies_and_the_largest_logit(fused: bool, way: str) -> None:
    model = gemma2()
    policy = Policy(model, temperature=0.8)
    policy.fused, policy.way = fused, way  # type: ignore[assignment]
    data = rollout()
    logits = torch.cat(
        [
            model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            for prompt, group in zip(data.prompts, data.completions(), strict=True)
            for completion in group
        ]
    )
    logp = (logits / 0.8).log_softmax(-1)
    wanted = -(logp.exp() * logp).sum(-1)
    logprobs, entropies = policy.scores(data, entropies=True)
    assert entropies is not None
    # fp32: sums over 96 tokens in another order.
    torch.testing.assert_close(entropies[data.mask], wanted, atol=2e-5, rtol=0)
    assert not entropies[~data.mask].any()
    assert torch.equal(logprobs, policy.logprobs(data))
    assert policy.max_logit(data) == pytest.approx(float(logits.detach().max()), abs=1e-5)

    model.zero_grad()
    entropies.sum().backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    wanted.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, atol=2e-4, rtol=1e-3)
