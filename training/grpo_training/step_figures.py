"""What a step's completions earned and looked like: one line each, and the figures over all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grpo_training.rollout import Rollout
from grpo_training.tasks import Judged


def rows_of(rollout: Rollout, earned: Tensor, rewards: Tensor, judged: list[Judged]) -> Tensor:
    """(S, 6), a line for each completion: what it earned (less the KL, where that is a cost), reward, correct, length,
    ended, summed entropy (NaN where the sampler does not tell)."""
    correct = torch.tensor([float(j.correct) for j in judged])
    entropy = rollout.entropy.sum(-1) if rollout.entropy is not None else torch.full_like(correct, math.nan)
    columns = (earned, rewards, correct, rollout.lengths, rollout.ended, entropy)
    return torch.stack([column.double().cpu() for column in columns], dim=1)


def describe(rows: Tensor, rollout: Rollout) -> dict[str, float]:
    """rows: as in `rows_of`, of all processes. rollout: this one's; it only says how the rows are grouped and what is known."""
    earned, rewards, correct, lengths, ended, entropy = rows.unbind(1)
    grouped = rewards.view(-1, rollout.group_size)
    figures = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()) if len(rewards) > 1 else 0.0,
        "reward/correct": float(correct.mean()),
        # Groups whose rewards are all equal teach nothing.
        "reward/flat_groups": float((grouped == grouped[:, :1]).all(-1).double().mean()),
        "completion/length": float(lengths.mean()),
        "completion/length_max": float(lengths.max()),
        "completion/ended": float(ended.mean()),
        "completion/tokens": float(lengths.sum()),
    }
    if rollout.entropy is not None:
        figures["policy/entropy"] = float(entropy.sum() / lengths.sum())
    if not torch.equal(earned, rewards):
        figures["reward/less_kl"] = float(earned.mean())
    return figures
