"""What a completion earns, and whether its answer is right: the dataset's own scorer or a Python function."""

from __future__ import annotations

import copy
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks.entries import Entry, Source
from grpo_training.tasks.prompting import Problem
from grpo_training.tasks.rewards import as_reward

Scorer = Callable[[str | None, Entry], float]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a completion earned, NaN where that is not known. correct: the answer is right by the dataset's scorer, whatever
    the reward says."""

    reward: float
    correct: bool
    answer: str | None


class Judge:
    """Finds the answer in a completion and rewards it. name: of the reward function."""

    def __init__(self, config: TaskConfig, source: Source) -> None:
        """Raises ConfigError for a function that cannot be imported and a pattern that is none."""
        self.name = config.reward
        self._match = config.answer_match
        self._scorer = _scorer(source)
        self._reward = _reward(config.reward, self._scorer)
        self._pattern = None if config.answer_pattern is None else _compile(config.answer_pattern)

    def judge(self, problem: Problem, completion: str) -> Judged:
        """Reward a completion's text (special tokens already removed).

        Judges get a copy of the entry each: what they do to it reaches no later prompt and no other completion. Raises
        ConfigError for a reward that is no number.
        """
        answer = self._find_answer(completion)
        reward = self._reward(answer, copy.deepcopy(problem.entry))
        return Judged(
            reward=as_reward(reward, name=self.name, where=problem.where),
            correct=float(self._scorer(answer, copy.deepcopy(problem.entry))) >= 1.0,
            answer=answer,
        )

    def _find_answer(self, completion: str) -> str | None:
        if self._pattern is None:
            return completion.strip()
        matches = list(self._pattern.finditer(completion))
        if not matches:
            return None
        match = matches[0 if self._match == "first" else -1]
        return match.group(1 if self._pattern.groups else 0)


def _scorer(source: Source) -> Scorer:
    dataset = source.dataset
    if dataset is None:
        return _same_text
    return lambda answer, entry: float(dataset.score_answer(answer, dict(entry)))


def _same_text(answer: str | None, entry: Entry) -> float:
    right = entry["answer"]
    comparable = isinstance(right, str | int | float) and not isinstance(right, bool)
    return float(answer is not None and comparable and answer.strip() == str(right).strip())


def _reward(name: str, scorer: Scorer) -> Scorer:
    if name == "graded":
        return scorer
    if name == "exact":
        return lambda answer, entry: float(scorer(answer, entry) >= 1.0)
    return _import_function(name)


def _import_function(name: str) -> Scorer:
    """`module:function`, the module being importable or a file of the working directory."""
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise ConfigError(f"task.reward: {name!r} is neither exact, graded nor module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"task.reward: cannot import {name}: {error}") from error
    if not callable(function):
        raise ConfigError(f"task.reward: {name} is not a function")
    return cast(Scorer, function)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"task.answer_pattern: {error}") from error
