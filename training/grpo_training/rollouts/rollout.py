"""A batch of groups: prompts, their completions, and who wrote which token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said. role: `assistant` for the policy, or that of the environment's message, `tool` where it has none.
    cut: whether it was longer."""

    role: str
    text: str
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Episode:
    """One completion's talk with its environment, in the order in which it was said."""

    environment: Any
    turns: list[Turn] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rollout:
    """K prompts with G completions each, S = K*G rows in the prompts' order, padded on the right to C.

    prompts: K lists of ids. ids: (S, C) int64, 0 where mask is False. mask: (S, C) bool, the tokens that exist: True up to
    and including the first end-of-sequence id. logprobs, entropy: (S, C) fp32, what the sampler saw, 0 outside loss_mask;
    entropy is None where it does not tell. ended: (S,) bool, False for a completion that was cut at the length limit.
    by_policy: (S, C) bool, the tokens that the policy wrote, where others stand among them (a tool's answer); None: all.
    episodes: S of them where there is an environment, else none.
    top_ids: (S, C, k) int32, the likeliest ids where each of those was sampled, -1 elsewhere; None: not kept.
    """

    prompts: list[list[int]]
    group_size: int
    ids: Tensor
    mask: Tensor
    logprobs: Tensor
    entropy: Tensor | None
    ended: Tensor
    by_policy: Tensor | None = None
    episodes: tuple[Episode, ...] = ()
    top_ids: Tensor | None = None

    @property
    def loss_mask(self) -> Tensor:
        """(S, C) bool: the tokens that are scored and trained on, those that exist and that the policy wrote."""
        return self.mask if self.by_policy is None else self.mask & self.by_policy

    @property
    def lengths(self) -> Tensor:
        """(S,) tokens per completion, whoever wrote them, the end-of-sequence id included."""
        return self.mask.sum(-1)

    def completions(self) -> list[list[list[int]]]:
        """K x G lists of ids, without padding."""
        # Two copies from the device, and not two a row.
        rows = [row[:n] for row, n in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]
        return [rows[k : k + self.group_size] for k in range(0, len(rows), self.group_size)]

    def written(self) -> list[list[list[bool]]] | None:
        """By whom each token of `completions` is: True for the policy. None: all are the policy's."""
        if self.by_policy is None:
            return None
        rows = [row[:n] for row, n in zip(self.by_policy.tolist(), self.lengths.tolist(), strict=True)]
        return [rows[k : k + self.group_size] for k in range(0, len(rows), self.group_size)]

    def portions(self, count: int) -> list[Rollout]:
        """Cut into `count` rollouts of whole groups; `count` divides K."""
        prompts = len(self.prompts) // count
        return [self._part(i * prompts, (i + 1) * prompts) for i in range(count)]

    def replaced(self, groups: Sequence[int], others: Rollout) -> Rollout:
        """The same with `groups` (their places) taken from `others`, which has them in this order and nothing else."""
        width = max(self.ids.shape[1], others.ids.shape[1])
        rows = torch.tensor(groups)[:, None] * self.group_size + torch.arange(self.group_size)
        at = rows.flatten().to(self.ids.device)

        def joined(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return None
            out, new = (_widened(t, width) if t.dim() > 1 else t for t in (mine, theirs))
            return out.index_copy(0, at, new)

        prompts = list(self.prompts)
        for place, prompt in zip(groups, others.prompts, strict=True):
            prompts[place] = prompt
        episodes = list(self.episodes)
        for row, episode in zip(rows.flatten().tolist(), others.episodes, strict=bool(others.episodes)):
            episodes[row] = episode
        mixed = self.by_policy is not None or others.by_policy is not None
        return Rollout(
            prompts,
            self.group_size,
            cast(Tensor, joined(self.ids, others.ids)),
            cast(Tensor, joined(self.mask, others.mask)),
            cast(Tensor, joined(self.logprobs, others.logprobs)),
            joined(self.entropy, others.entropy),
            cast(Tensor, joined(self.ended, others.ended)),
            joined(self.loss_mask, others.loss_mask) if mixed else None,
            tuple(episodes),
            joined(self.top_ids, others.top_ids),
        )

    def chosen(self, groups: Sequence[int]) -> Rollout:
        """The groups at these places, in this order."""
        parts = [self._part(k, k + 1) for k in groups]
        rows = torch.tensor(groups)[:, None] * self.group_size + torch.arange(self.group_size)
        at = rows.flatten().to(self.ids.device)
        return Rollout(
            [part.prompts[0] for part in parts],
            self.group_size,
            self.ids[at],
            self.mask[at],
            self.logprobs[at],
            None if self.entropy is None else self.entropy[at],
            self.ended[at],
            None if self.by_policy is None else self.by_policy[at],
            tuple(self.episodes[i] for i in rows.flatten().tolist()) if self.episodes else (),
            None if self.top_ids is None else self.top_ids[at],
        )

    def _part(self, first: int, last: int) -> Rollout:
        rows = slice(first * self.group_size, last * self.group_size)
        return Rollout(
            self.prompts[first:last],
            self.group_size,
            self.ids[rows],
            self.mask[rows],
            self.logprobs[rows],
            None if self.entropy is None else self.entropy[rows],
            self.ended[rows],
            None if self.by_policy is None else self.by_policy[rows],
            self.episodes[rows],
            None if self.top_ids is None else self.top_ids[rows],
        )


def _widened(values: Tensor, width: int) -> Tensor:
    """(S, C, ...) with 0, or -1 for ids of which there are several, in columns up to `width`."""
    more = width - values.shape[1]
    return (
        nn.functional.pad(values, (0, more))
        if values.dim() == 2
        else nn.functional.pad(values, (0, 0, 0, more), value=-1)
    )


def pad_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention mask and position ids, each (B, P) int64, padded on the left so that every row ends together."""
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[0] * (width - len(s)) + list(s) for s in sequences], device=device)
    attention = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    return ids, attention, positions
