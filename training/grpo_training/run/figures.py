"""What a step's completions earned and looked like: one row each, and the figures over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_training.distributed import World
from grpo_training.rollouts.rollout import Rollout
from grpo_training.tasks.judging import ONLY_REWARD, Judged, Judgement


def rows_of(rollout: Rollout, earned: Tensor, judged: list[Judged]) -> Tensor:
    """(S, 7 + K), a row for each completion: what it earned (less the KL, where that is a cost), reward (both NaN where they
    are not known), correct, length, ended, tokens that the policy wrote, their summed entropy (NaN where the sampler does
    not tell), and what each of K reward functions gave (NaN where it abstained)."""
    correct = torch.tensor([math.nan if j.correct is None else float(j.correct) for j in judged])
    rewards = torch.tensor([j.reward for j in judged], dtype=torch.float64)
    parts = torch.tensor([j.parts for j in judged], dtype=torch.float64)
    entropy = rollout.entropy.sum(-1) if rollout.entropy is not None else torch.full_like(correct, math.nan)
    columns = (earned, rewards, correct, rollout.lengths, rollout.ended, rollout.loss_mask.sum(-1), entropy)
    return torch.cat([torch.stack([column.double().cpu() for column in columns], dim=1), parts], dim=1)


def describe(rows: Tensor, rollout: Rollout, functions: Sequence[str], *, kl: bool = False) -> dict[str, float]:
    """rows: as in `rows_of`, of all processes. rollout: this one's; it only says how the rows are grouped and what is known.
    functions: names of the reward functions; where there are several, each has its own figures. kl: what was earned is less
    the KL.

    Means are over the rewards that are known, NaN where none is; `reward/unmeasured` counts the others.
    """
    earned, rewards, correct, lengths, ended, written, entropy = rows[:, :7].unbind(1)
    known = rewards.isfinite()
    figures = {
        "reward/mean": mean_of_known(rewards.tolist()),
        "reward/std": float(rewards[known].std()) if known.sum() > 1 else 0.0 if known.any() else math.nan,
        "reward/correct": mean_of_known(correct.tolist()),
        "reward/flat_groups": _flat_groups(rewards.view(-1, rollout.group_size)),
        "reward/unmeasured": float((~known).sum()),
        "completion/length": float(lengths.mean()),
        "completion/length_max": float(lengths.max()),
        "completion/ended": float(ended.mean()),
        "completion/tokens": float(lengths.sum()),
    }
    if rollout.entropy is not None:
        figures["policy/entropy"] = float(entropy.sum() / written.sum())
    if not torch.equal(earned.nan_to_num(), rewards.nan_to_num()):
        figures["reward/less_kl" if kl else "reward/shaped"] = mean_of_known(earned.tolist())
    if functions != (ONLY_REWARD,):
        for name, part in zip(functions, rows[:, 7:].unbind(1), strict=True):
            given = part[part.isfinite()]
            figures[f"reward/{name}/mean"] = mean_of_known(given.tolist())
            figures[f"reward/{name}/std"] = float(given.std()) if len(given) > 1 else 0.0 if len(given) else math.nan
            figures[f"reward/{name}/abstained"] = float(len(part) - len(given))
    return figures


def turn_figures(rollout: Rollout, world: World) -> dict[str, float]:
    """Of completions with an environment, over all processes: the policy's turns and tokens, a completion's mean, and how many
    messages of the environment were cut."""
    if rollout.by_policy is None:
        return {}
    turns = [turn for episode in rollout.episodes for turn in episode.turns]
    mine = [sum(turn.role == "assistant" for turn in turns), int(rollout.loss_mask.sum()), len(rollout.ids)]
    own, written, rows, cut = world.sum(torch.tensor([*mine, sum(turn.cut for turn in turns)])).tolist()
    return {"completion/turns": own / rows, "completion/written": written / rows, "environment/cut": cut}


def function_figures(judgement: Judgement, world: World) -> dict[str, float]:
    """Calls that failed, over all processes, and of several functions each one's and its seconds, those of the slowest."""
    names = list(judgement.errors)
    errors = world.sum(torch.tensor([judgement.errors[name] for name in names])).tolist()
    figures: dict[str, float] = {"reward/errors": sum(errors)}
    if names != [ONLY_REWARD]:
        figures |= {f"reward/{name}/errors": count for name, count in zip(names, errors, strict=True)}
        figures |= world.maxima({f"time/reward/{name}_s": judgement.seconds[name] for name in names})
    return figures


def mean_of_known(values: Sequence[float]) -> float:
    """The mean of the finite ones; NaN where there is none."""
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _flat_groups(grouped: Tensor) -> float:
    """(K, G) rewards -> the share of groups whose known rewards are all equal, which teach nothing; of those with any."""
    known = grouped.isfinite()
    low, high = grouped.masked_fill(~known, math.inf).amin(1), grouped.masked_fill(~known, -math.inf).amax(1)
    flat = (low == high)[known.any(1)]
    return float(flat.double().mean()) if len(flat) else math.nan
