"""One portion of a step: some of its groups, and what becomes known of them on the way from sampling to the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_training.losses.objective import PortionData
from grpo_training.rollouts.reference import Pending
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.stored_teacher import KnownLesson
from grpo_training.rollouts.teacher import Lesson, TeacherScores


class Portion:
    """S completions of up to C tokens.

    rollout: as sampled. advantages: (S,), 0 until `rewarded`. old: (S, C) log-probs of the policy before the step's first
    update, None until they are known. reference: (S, C), None until `collect`, or where nobody is asked. teacher: what it told,
    None until `learn`, or where there is none. usable: (S,) bool, False for what is left out: its reward is not known, or
    reference or teacher could not score it.
    """

    def __init__(
        self,
        rollout: Rollout,
        pending: Pending | None = None,
        lesson: Lesson | KnownLesson | None = None,
        *,
        mask_truncated: bool = False,
    ) -> None:
        """pending: the reference's scores, under way; None where nobody is asked. lesson: the teacher's, under
        way or known already. mask_truncated: train on no token of a completion that was cut, which stays usable and counts as a
        sequence, as in TRL."""
        self.rollout = rollout
        self.advantages = torch.zeros(len(rollout.ids), device=rollout.ids.device)
        self.usable = torch.ones(len(rollout.ids), dtype=torch.bool, device=rollout.ids.device)
        self.old: Tensor | None = None
        self.reference: Tensor | None = None
        self.unscored = 0
        self.teacher: TeacherScores | None = None
        self.untaught = 0
        self._pending, self._lesson = pending, lesson
        self._trained = rollout.loss_mask & rollout.ended[:, None] if mask_truncated else rollout.loss_mask

    @property
    def awaited(self) -> bool:
        """Whether the reference's scores are still to be collected."""
        return self._pending is not None and self.reference is None

    @property
    def latency_s(self) -> float:
        """Seconds from request to answer; 0 where nobody was asked."""
        return self._pending.latency_s if self._pending else 0.0

    def collect(self) -> None:
        """Wait for the reference's scores; what it could not score is not usable. Once is enough."""
        if self._pending is None or self.reference is not None:
            return
        self.reference, scored = self._pending.collect()
        self.usable = self.usable & scored
        self.unscored = int((~scored).sum())

    @property
    def taught(self) -> bool:
        """Whether a teacher was asked."""
        return self._lesson is not None

    @property
    def lesson_latency_s(self) -> float:
        """Seconds from request to the last teacher's answer; 0 where there is none."""
        return self._lesson.latency_s if self._lesson else 0.0

    def learn(self) -> None:
        """Wait for the teacher's scores; what it could not score is not usable. Once is enough."""
        if self._lesson is None or self.teacher is not None:
            return
        self.teacher = self._lesson.collect()
        self.usable = self.usable & self.teacher.usable
        self.untaught = int((~self.teacher.usable).sum())

    def rewarded(self, advantages: Tensor, known: Tensor) -> None:
        """advantages: (S,). known: (S,) bool, where there is a reward."""
        self.advantages = advantages.to(self.advantages.device)
        self.usable = self.usable & known.to(self.usable.device)

    @property
    def scored(self) -> Tensor:
        """(S, C) bool: the tokens that policy and reference both have a log-prob of, as far as is known."""
        return self.rollout.loss_mask & self.usable[:, None]

    @property
    def mask(self) -> Tensor:
        """(S, C) bool: the tokens that are trained on, as far as is known."""
        return self._trained & self.usable[:, None]

    def data(self, logprobs: Tensor, entropies: Tensor | None, *, earned: Tensor | None = None) -> PortionData:
        """All of it as the loss takes it, with the policy's (S, C) log-probs and entropies of now. earned: (S, C) that is
        added to the advantages, token by token."""
        assert self.old is not None
        return PortionData(
            logprobs=logprobs,
            entropies=entropies,
            old=self.old,
            sampler=self.rollout.logprobs,
            reference=self.reference,
            mask=self.mask,
            advantages=self.advantages if earned is None else self.advantages[:, None] + earned,
        )
