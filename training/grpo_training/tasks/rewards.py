"""What a reward function gave: a number, or nothing that can be trained on.

None, NaN and infinities mean that a completion's reward is not known. It is left out of its group, of the loss and of the
means, counted, and named in the log. What can never be a reward (a text, a list) is the function's fault and ends the run.
A call that failed is dealt with by the run's rule: it ends the run, counts as not known, or as a reward of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from grpo_training.config import ConfigError, OnError, RewardConfig, RewardError, TaskConfig
from grpo_training.tasks.outcomes import Failed, Outcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of one function's calls. value: the reward of one that failed, with on_error=value."""

    name: str
    on_error: OnError
    value: float

    @classmethod
    def of(cls, task: TaskConfig, reward: RewardConfig) -> Rule:
        value = task.error_value if reward.error_value is None else reward.error_value
        return cls(reward.function, reward.on_error or task.on_error, value)

    def applied(self, outcomes: Sequence[Outcome], places: Sequence[str], *, when: str) -> tuple[list[float], int]:
        """The rewards, NaN where they are not known, and how many calls failed; one warning tells the first of those.

        places: the row of each. when: in words. Raises RewardError for a failure with on_error=raise, which names function
        and row.
        """
        failed = [(where, of.why) for where, of in zip(places, outcomes, strict=True) if isinstance(of, Failed)]
        if failed:
            where, why = failed[0]
            if self.on_error == "raise":
                raise RewardError(
                    f"{self.name} failed for {where}: {why}. To go on without such rewards set task.on_error=abstain, or "
                    f"value with task.error_value"
                )
            logger.warning(
                "%s: the reward %s failed for %d of %d completions (%s), the first for %s: %s",
                when,
                self.name,
                len(failed),
                len(outcomes),
                "left out" if self.on_error == "abstain" else f"rewarded with {self.value:g}",
                where,
                why,
            )
        stands_in = self.value if self.on_error == "value" else math.nan
        rewards = [
            stands_in if isinstance(of, Failed) else as_reward(of.value, name=self.name, where=where)
            for where, of in zip(places, outcomes, strict=True)
        ]
        return rewards, len(failed)


class HasReward(Protocol):
    @property
    def reward(self) -> float: ...


def as_reward(value: object, *, name: str, where: str) -> float:
    """The number, NaN where it is not known. name: of the function. where: the row that it judged.

    Raises ConfigError, naming both, for what is neither a number nor None.
    """
    if value is None:
        return math.nan
    try:
        if not isinstance(value, str | bytes):
            number = float(value)  # pyright: ignore[reportArgumentType]  # numpy's, torch's and decimal's know how
            return number if math.isfinite(number) else math.nan
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise ConfigError(
        f"task.reward: {name} gave {value!r:.80} for {where}: a reward is a number, or None where it is not known"
    )


def tell_unmeasured(judged: Sequence[HasReward], places: Sequence[str], *, name: str, when: str) -> int:
    """How many rewards are not known; one warning that names the function, the first of their rows and when it was."""
    missing = [i for i, j in enumerate(judged) if not math.isfinite(j.reward)]
    if missing:
        logger.warning(
            "%s: the reward %s of %d of %d completions is None or not finite, the first that of %s: they are left out",
            when,
            name,
            len(missing),
            len(judged),
            places[missing[0]],
        )
    return len(missing)
