"""What a reward function gave: a number, or nothing that can be trained on.

None, NaN and infinities mean that a completion's reward is not known. It is left out of its group, of the loss and of the
means, counted, and named in the log. What can never be a reward (a text, a list) is the function's fault and ends the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Protocol

from grpo_training.config import ConfigError

logger = logging.getLogger(__name__)


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
