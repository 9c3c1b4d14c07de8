"""The policy's log-probs and their gradient: prompts computed once against every row by itself, over architectures."""

from __future__ import annotations

import copy

import pytest
import torch
from grpo_numerics.packed import attention_forward
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14]]
LENGTHS = [4, 1, 6, 3]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
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


def windowed() -> PreTrainedModel:
    """A window that only sequences of more than forty tokens reach past."""
    return MistralForCausalLM(MistralConfig(sliding_window=40, max_position_embeddings=256, **SIZES, **SMALL))


def test_a_window_that_one_layer_gets_wrong_is_noticed(monkeypatch) -> None:
    """The probe's sequences are longer than the window, as the server's are."""
    assert Policy(windowed().eval()).way == "packed"

    def without_window(*args, sliding_window=None, **kwargs):
        return attention_forward(*args, sliding_window=None, **kwargs)

    monkeypatch.setattr("grpo_training.rollouts.forward.attention_forward", without_window)
    assert Policy(windowed().eval()).way == "plain"


def test_every_layer_must_come_through_the_packed_attention(tiny: LlamaForCausalLM, monkeypatch) -> None:
    """One packed call a layer and nothing less: a layer that attends by itself sees other sequences of the stream."""
    own = tiny.model.layers[1].self_attn
    original = type(own).forward

    def by_itself(self, **kwargs):
        if self is not own or self.config._attn_implementation == "eager":
            return original(self, **kwargs)
        return torch.zeros_like(kwargs["hidden_states"]), None

    monkeypatch.setattr(type(own), "forward", by_itself)
    tiny.set_attn_implementation("eager")
    assert Policy(tiny).way == "plain"


@pytest.mark.parametrize(("kind", "named", "factor"), [("granite", 4.0, 0.25), ("hyperclovax", 4.0, 4.0)])
def test_the_logits_factor_is_read_off_the_logits(kind: str, named: float, factor: float) -> None:
    """Granite divides by what HyperCLOVA X, under the same name, multiplies with."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**SIZES, logits_scaling=named, max_position_embeddings=256, **SMALL)
    model = AutoModelForCausalLM.from_config(config).eval()
    policy = Policy(model)
    assert (policy.way, policy.fused, policy._logit_scale) == ("packed", True, factor)
    check(model, policy)


@pytest.mark.parametrize("scheme", ["longrope", "dynamic"])
def test_frequencies_that_depend_on_length_are_those_of_each_sequence(scheme: str) -> None:
    """Sequences around the edge, the longest first, in one batch: each as a fresh model has it."""
    edge = 24
    torch.manual_seed(0)
    if scheme == "longrope":
        rope = {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0 + 3 * i for i in range(4)],
            "original_max_position_embeddings": edge,
        }
        config = CONFIG_MAPPING["phi3"](
            **SIZES, **SMALL, max_position_embeddings=128, original_max_position_embeddings=edge, rope_parameters=rope
        )
    else:
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
        config = CONFIG_MAPPING["llama"](**SIZES, **SMALL, max_position_embeddings=edge, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    untouched = copy.deepcopy(model)
    policy = Policy(model)
    lengths = [60, edge - 11, edge - 10, edge - 9, edge - 8, 3]  # behind a prompt of ten
    ids = torch.randint(3, 80, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    prompt = list(range(3, 13))
    data = Rollout([prompt], len(lengths), ids.where(mask, 0), mask, torch.zeros(mask.shape), None, mask[:, 0])
    ours = policy.logprobs(data).detach()
    for row, completion in enumerate(data.completions()[0]):
        fresh = copy.deepcopy(untouched)
        with torch.no_grad():
            logits = fresh(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        want = logits.double().log_softmax(-1)[torch.arange(len(completion)), completion]
        # two fp32 forwards that sum in different order
        torch.testing.assert_close(ours[row, : len(completion)].double(), want, atol=2e-4, rtol=0)
