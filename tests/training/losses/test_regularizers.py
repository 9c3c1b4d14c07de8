"""Entropy mask, entropy bonus and KL in the reward, by hand; against TRL they stand in tests/doors."""

from __future__ import annotations

import math

import pytest
import torch
from grpo_training.losses.regularizers import entropy_bonus, high_entropy_mask, kl_in_reward

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
ENTROPIES = torch.tensor([[0.1, 0.9, 0.3, 9.0], [0.7, 0.2, math.nan, 9.0]])


def test_the_uncertain_tokens_are_kept() -> None:
    assert high_entropy_mask(ENTROPIES, MASK, 0.4).tolist() == [
        [False, True, False, False],
        [True, False, False, False],
    ]
    assert torch.equal(high_entropy_mask(ENTROPIES, MASK, 1.0), MASK)
    assert not high_entropy_mask(ENTROPIES, torch.zeros_like(MASK), 0.5).any()
    one_threshold_for_all = high_entropy_mask(ENTROPIES, MASK, 0.5, everywhere=torch.tensor([0.8, 0.8, 5.0]))
    assert one_threshold_for_all.sum() == 1
    with pytest.raises(ValueError, match="top"):
        high_entropy_mask(ENTROPIES, MASK, 0.0)


def test_the_bonus_is_the_mean_entropy_and_hidden_places_have_no_gradient() -> None:
    entropies = ENTROPIES.clone().requires_grad_()
    bonus = entropy_bonus(entropies, MASK, portions=2)
    bonus.backward()
    assert bonus.item() == pytest.approx(2.2 / 5 / 2)
    assert entropies.grad is not None
    assert torch.equal(entropies.grad, MASK / 10)
    assert entropy_bonus(ENTROPIES, torch.zeros_like(MASK)).item() == 0.0


def test_the_kl_is_taken_off_the_reward() -> None:
    logprobs, ref = torch.full((2, 4), -1.0), torch.full((2, 4), -1.5)
    ref[0, 3] = math.nan
    rewards = kl_in_reward(torch.tensor([1.0, 2.0]), logprobs, ref, MASK, beta=0.1)
    torch.testing.assert_close(rewards, torch.tensor([1.0 - 0.1 * 1.5, 2.0 - 0.1 * 1.0]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_masks_of_zeros_and_ones(dtype: torch.dtype) -> None:
    mask = MASK.to(dtype)
    logprobs, rewards = torch.full((2, 4), -1.0), torch.tensor([1.0, 2.0])
    assert torch.equal(high_entropy_mask(ENTROPIES, mask, 0.4), high_entropy_mask(ENTROPIES, MASK, 0.4))
    assert torch.equal(entropy_bonus(ENTROPIES, mask), entropy_bonus(ENTROPIES, MASK))
    assert torch.equal(
        kl_in_reward(rewards, logprobs, ENTROPIES, mask, beta=0.1),
        kl_in_reward(rewards, logprobs, ENTROPIES, MASK, beta=0.1),
    )
    for refused in (lambda m: high_entropy_mask(ENTROPIES, m, 0.4), lambda m: entropy_bonus(ENTROPIES, m)):
        with pytest.raises(ValueError, match="mask must hold nothing but 0 and 1"):
            refused(3 * mask)


def test_the_bonus_of_several_processes_is_the_mean_over_all_their_tokens() -> None:
    """Their losses are added up: each divides by what all of them have."""
    whole = entropy_bonus(ENTROPIES, MASK)
    parts = [entropy_bonus(ENTROPIES[i : i + 1], MASK[i : i + 1], tokens=5) for i in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_bonus_of_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    """60,000 tokens of 4 nats: their sum is beyond fp16."""
    entropies = torch.full((1, 60_000), 4.0, dtype=dtype)
    assert entropy_bonus(entropies, torch.ones(1, 60_000)).item() == 4.0
