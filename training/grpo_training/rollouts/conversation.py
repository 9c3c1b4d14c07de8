"""Completions of several turns: the policy writes, its environment answers, the policy goes on.

    sampled 1, 2, 3 | answered 4, 5 | sampled 6, 7      ->     ids 1 2 3 4 5 6 7, by_policy 1 1 1 0 0 1 1

A turn is over when it ends as a completion does, with an end-of-sequence id or a stop string. The environment then answers, or
has nothing to say: the completion has ended. It is cut where it meets the limit on tokens, which counts what both write, where
an answer leaves no room for another turn, and where the environment would go on after the last turn. All completions take
their turns together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from grpo_training.config import EnvironmentFailed
from grpo_training.rollouts.environment import Asked, Environments
from grpo_training.rollouts.observations import Observation
from grpo_training.rollouts.rollout import Episode, Rollout, Turn


class Draw(Protocol):
    def __call__(
        self,
        contexts: Sequence[Sequence[int]],
        *,
        group_size: int,
        seed: int,
        places: Tensor | None,
        limits: Sequence[int] | None,
    ) -> Rollout:
        """Sample `group_size` continuations of each context. places: (S,) of the step's, None: all of it in order. limits: of
        each one's tokens."""
        ...


@dataclass(slots=True)
class _Talk:
    """One completion, as it grows. turn: what the policy wrote last."""

    asked: Asked
    prompt: Sequence[int]
    episode: Episode
    ids: list[int] = field(default_factory=list)
    mine: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    best: list[list[int]] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    ended: bool = False
    live: bool = True

    def heard(self, observation: Observation) -> None:
        """What it was told is a part of it that the policy did not write."""
        zeros = [0.0] * len(observation.ids)
        self._add(observation.ids, zeros, zeros, mine=False)
        self.best += [[] for _ in observation.ids]
        self.episode.turns.extend(observation.turns)

    def wrote(self, turn: Turn, ids: list[int], logprobs: list[float], entropy: list[float]) -> None:
        self._add(ids, logprobs, entropy, mine=True)
        self.episode.turns.append(turn)
        self.turn = ids

    def _add(self, ids: list[int], logprobs: list[float], entropy: list[float], *, mine: bool) -> None:
        self.ids += ids
        self.mine += [mine] * len(ids)
        self.logprobs += logprobs
        self.entropy += entropy


def converse(
    draw: Draw,
    environments: Environments,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[Asked],
    *,
    group_size: int,
    max_new_tokens: int,
    seed: int,
    device: torch.device,
    places: Tensor | None = None,
) -> Rollout:
    """`group_size` completions of each prompt, each with an environment of its own.

    asked: the row of each prompt. places: as in `Draw`. Raises EnvironmentFailed, which names environment, row and turn.
    """
    rows = [of for of in asked for _ in range(group_size)]
    at = torch.arange(len(rows)) if places is None else places
    episodes, openings = environments.begin(rows, [_seed(seed, 0, place) for place in at.tolist()])
    talks = [
        _Talk(of, prompts[i // group_size], episode) for i, (of, episode) in enumerate(zip(rows, episodes, strict=True))
    ]
    for talk, opening in zip(talks, openings, strict=True):
        if opening is not None:
            talk.heard(opening)
            if len(talk.ids) >= max_new_tokens:
                raise EnvironmentFailed(
                    f"what reset gives ({talk.asked.where}) has {len(talk.ids)} tokens, and rollout.max_new_tokens="
                    f"{max_new_tokens} leaves the policy none"
                )
    entropies = True
    for turn in range(1, environments.max_turns + 1):
        live = [i for i, talk in enumerate(talks) if talk.live]
        if not live:
            break
        limits = [max_new_tokens - len(talks[i].ids) for i in live]
        if turn == 1 and not any(talk.ids for talk in talks):  # nothing stands between a prompt and its group yet
            drawn = draw(prompts, group_size=group_size, seed=seed, places=places, limits=None)
        else:
            contexts = [[*talks[i].prompt, *talks[i].ids] for i in live]
            again = seed if turn == 1 else _seed(seed, turn)
            drawn = draw(contexts, group_size=1, seed=again, places=at[live], limits=limits)
        entropies = entropies and drawn.entropy is not None
        _take(environments, [talks[i] for i in live], drawn)
        spoken = [talks[i] for i in live if talks[i].ended]
        _answer(environments, spoken, turn, max_new_tokens)
    environments.end(episodes, rows)
    return _rollout(prompts, group_size, talks, device, entropies=entropies)


def _take(environments: Environments, talks: Sequence[_Talk], drawn: Rollout) -> None:
    """The policy's turn; a talk whose turn was cut is over."""
    lengths, logprobs = drawn.lengths.tolist(), drawn.logprobs.tolist()
    entropy = logprobs if drawn.entropy is None else drawn.entropy.tolist()
    best = [[] for _ in talks] if drawn.top_ids is None else drawn.top_ids.tolist()
    rows = zip(talks, drawn.ids.tolist(), lengths, logprobs, entropy, drawn.ended.tolist(), best, strict=True)
    for talk, ids, n, scores, uncertainty, ended, likeliest in rows:
        talk.wrote(Turn("assistant", environments.reader.said(ids[:n])), ids[:n], scores[:n], uncertainty[:n])
        talk.best += likeliest[:n]
        talk.ended = talk.live = ended


def _answer(environments: Environments, talks: Sequence[_Talk], turn: int, max_new_tokens: int) -> None:
    """The environments' turn. What they say is put behind the policy's, where another turn can follow it."""
    answers = environments.answers(
        [talk.episode for talk in talks], [talk.asked for talk in talks], [talk.turn for talk in talks], turn=turn
    )
    for talk, answer in zip(talks, answers, strict=True):
        talk.live = False
        if answer is None:
            continue
        talk.ended = False
        if turn < environments.max_turns and len(talk.ids) + len(answer.ids) < max_new_tokens:
            talk.heard(answer)
            talk.live = True


def _seed(*of: int) -> int:
    return int(np.random.SeedSequence(of).generate_state(1, np.uint32)[0])


def _rollout(
    prompts: Sequence[Sequence[int]], group_size: int, talks: Sequence[_Talk], device: torch.device, *, entropies: bool
) -> Rollout:
    width = max(len(talk.ids) for talk in talks)

    def padded(rows: Sequence[Sequence[int] | Sequence[float]], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=dtype, device=device)

    lengths = torch.tensor([len(talk.ids) for talk in talks], device=device)
    return Rollout(
        [list(p) for p in prompts],
        group_size,
        padded([talk.ids for talk in talks], torch.int64),
        torch.arange(width, device=device) < lengths[:, None],
        padded([talk.logprobs for talk in talks], torch.float32),
        padded([talk.entropy for talk in talks], torch.float32) if entropies else None,
        torch.tensor([talk.ended for talk in talks], device=device),
        padded([talk.mine for talk in talks], torch.bool),
        tuple(talk.episode for talk in talks),
        _best([talk.best for talk in talks], width, device),
    )


def _best(rows: Sequence[Sequence[Sequence[int]]], width: int, device: torch.device) -> Tensor | None:
    """(S, width, k) the likeliest ids of each position, -1 where there are none; None where none were kept."""
    k = max((len(ids) for row in rows for ids in row), default=0)
    if not k:
        return None
    nothing = [-1] * k
    padded = [[*(ids or nothing for ids in row), *[nothing] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int32, device=device)
