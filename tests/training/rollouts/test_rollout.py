"""The sampler against a naive one that runs every row alone and whole, and its masks."""

from __future__ import annotations

import pytest
import torch
from grpo_training.rollouts.generation import sample
from grpo_training.rollouts.rollout import Rollout
from transformers import LlamaForCausalLM

from ..conftest import EOS

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]


def draw(model: LlamaForCausalLM, *, eos: set[int] | None = None, seed: int = 3, **options: object) -> Rollout:
    settings = {"group_size": 4, "max_new_tokens": 9, "temperature": 0.8} | options
    return sample(model, PROMPTS, eos_ids=frozenset({EOS} if eos is None else eos), seed=seed, **settings)


@torch.no_grad()
def naive(model: LlamaForCausalLM, rollout: Rollout, eos: set[int], seed: int, temperature: float) -> list[list[int]]:
    """Each row by itself, the whole sequence anew for each token, cut at the first end-of-sequence id."""
    rows = len(PROMPTS) * rollout.group_size
    uniforms = torch.rand(9, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    out: list[list[int]] = []
    for row in range(rows):
        ids = list(PROMPTS[row // rollout.group_size])
        made: list[int] = []
        while len(made) < 9 and (not made or made[-1] not in eos):
            logits = model(torch.tensor([ids + made])).logits[0, -1].double() / temperature
            cumulative = logits.softmax(-1).cumsum(-1)
            made.append(int((cumulative <= uniforms[len(made), row] * cumulative[-1]).sum()))
        out.append(made)
    return out


@pytest.mark.parametrize("eos", [{EOS}, {EOS, *range(20, 35)}, {999}], ids=["one", "many", "none"])
def test_the_same_tokens_as_a_naive_sampler(tiny: LlamaForCausalLM, eos: set[int]) -> None:
    rollout = draw(tiny, eos=eos)
    expected = naive(tiny, rollout, eos, seed=3, temperature=0.8)
    assert [row for group in rollout.completions() for row in group] == expected
    assert rollout.ended.tolist() == [row[-1] in eos for row in expected]
    assert rollout.lengths.tolist() == [len(row) for row in expected]


def test_log_probs_and_entropy_are_those_of_the_distribution(tiny: LlamaForCausalLM) -> None:
    rollout = draw(tiny, eos={EOS, *range(20, 35)})
    rows = [row for group in rollout.completions() for row in group]
    for i, row in enumerate(rows):
        prompt = PROMPTS[i // rollout.group_size]
        logits = tiny(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].double() / 0.8
        logp = logits.log_softmax(-1)
        wanted = logp[torch.arange(len(row)), row]
        # fp32 sums in another order: some units in the last place of logits of size 10.
        torch.testing.assert_close(rollout.logprobs[i, : len(row)].double(), wanted, atol=3e-5, rtol=0)
        entropy = -(logp.exp() * logp).sum(-1)
        torch.testing.assert_close(rollout.entropy[i, : len(row)].double(), entropy, atol=3e-5, rtol=0)
    hidden = ~rollout.mask
    assert hidden.any()
    assert not rollout.ids[hidden].any()
    assert not rollout.logprobs[hidden].any()
    assert not rollout.entropy[hidden].any()


def test_the_mask_ends_with_the_first_end_of_sequence(tiny: LlamaForCausalLM) -> None:
    """The padding id of this model is its end-of-sequence id: what follows the first one is padding, not text."""
    assert tiny.config.pad_token_id == EOS
    many = {EOS, *range(20, 35)}
    rollout = draw(tiny, eos=many)
    for ids, mask, ended in zip(rollout.ids, rollout.mask, rollout.ended, strict=True):
        real = ids[mask].tolist()
        assert mask.tolist() == [True] * len(real) + [False] * (len(mask) - len(real))
        assert all(token not in many for token in real[:-1])
        assert (real[-1] in many) == bool(ended)
    assert rollout.ended.any()


def test_a_seed_is_a_rollout(tiny: LlamaForCausalLM) -> None:
    one, two, other = draw(tiny), draw(tiny), draw(tiny, seed=4)
    assert torch.equal(one.ids, two.ids)
    assert torch.equal(one.logprobs, two.logprobs)
    assert one.completions() != other.completions()


def test_sampling_follows_the_distribution(tiny: LlamaForCausalLM) -> None:
    rows = 4000
    rollout = sample(tiny, [[5, 6, 7]], group_size=rows, max_new_tokens=1, temperature=1.5, eos_ids=frozenset(), seed=0)
    probs = (tiny(torch.tensor([[5, 6, 7]])).logits[0, -1].detach() / 1.5).softmax(-1)
    shares = torch.bincount(rollout.ids[:, 0], minlength=len(probs)) / rows
    # Five standard deviations of a binomial share, for each of some 80 tokens.
    assert bool(((shares - probs).abs() <= 5 * (probs * (1 - probs) / rows).sqrt() + 1 / rows).all())


def test_stablemax_is_sampled_as_stablemax(tiny: LlamaForCausalLM) -> None:
    rollout = draw(tiny, normalizer="stablemax", eos={999})
    first = rollout.completions()[0][0]
    logits = tiny(torch.tensor([PROMPTS[0] + first])).logits[0, len(PROMPTS[0]) - 1 : -1].detach().double() / 0.8
    mass = torch.where(logits >= 0, logits + 1, 1 / (1 - logits))
    wanted = (mass / mass.sum(-1, keepdim=True)).log()[torch.arange(9), first]
    torch.testing.assert_close(rollout.logprobs[0].double(), wanted, atol=3e-5, rtol=0)


def test_split_keeps_groups_whole(tiny: LlamaForCausalLM) -> None:
    rollout = draw(tiny)
    parts = rollout.portions(3)
    assert [p.prompts for p in parts] == [[p] for p in PROMPTS]
    assert [g for p in parts for g in p.completions()] == rollout.completions()
