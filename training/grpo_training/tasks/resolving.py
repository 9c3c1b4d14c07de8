"""From the name of a reward function to the function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from grpo_training.config import ConfigError
from grpo_training.importing import imported

_SCORER = "reasoning_gym:"


def resolve(name: str, arguments: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """`module:function`, the module importable or a file of the working directory; `reasoning_gym:DATASET` its scorer.

    arguments: what it names is called with these first. Raises ConfigError.
    """
    if name.startswith(_SCORER):
        import reasoning_gym  # hundreds of datasets, which a process for another function does without

        try:
            return reasoning_gym.get_score_answer_fn(name.removeprefix(_SCORER))
        except ValueError as error:
            raise ConfigError(f"task.reward: {error}") from error
    if ":" not in name:
        raise ConfigError(f"task.reward: {name!r} is neither exact, graded nor module:function")
    function = imported(name, field="task.reward")
    if arguments is not None:
        try:
            function = function(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"task.rewards: {name} refuses its arguments: {error}") from error
    if not callable(function):
        raise ConfigError(f"task.reward: {name} is not a function")
    return function
