"""What a completion earns, and whether its answer is right: the dataset's own scorer and the run's reward functions.

A reward is the weighted sum of what the functions gave. One that abstains (None, NaN) counts in no sum; where all abstain
the reward is not known.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from grpo_training.config import ConfigError, RewardConfig, TaskConfig
from grpo_training.tasks.calling import Completion
from grpo_training.tasks.functions import Elsewhere, RewardFunction
from grpo_training.tasks.rewards import Rule
from grpo_training.tasks.rows import Entry
from grpo_training.tasks.source import Source

Scorer = Callable[[str | None, Entry], float]
ONLY_REWARD = "reward"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a completion earned, NaN where that is not known. correct: the answer is right by the dataset's scorer, whatever
    the reward says; None where the row has no answer to compare with. parts: what each function gave, before its weight;
    NaN where it abstained."""

    reward: float
    correct: bool | None
    answer: str | None
    parts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """judged: one a completion, in their order. errors, seconds: of each function, by name."""

    judged: list[Judged]
    errors: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Judge:
    """Finds the answers in completions and rewards them. names: of the reward functions."""

    def __init__(self, config: TaskConfig, source: Source) -> None:
        """Raises ConfigError for a function that cannot be imported and a pattern that is none."""
        self._match = config.answer_match
        self._scorer = _scorer(source)
        self._pattern = None if config.answer_pattern is None else _compile(config.answer_pattern)
        chosen = dict(config.rewards) or {ONLY_REWARD: RewardConfig(function=config.reward)}
        self.names = tuple(chosen)
        self.told = ", ".join(reward.function for reward in chosen.values())
        self._weights = [reward.weight for reward in chosen.values()]
        self._rules = [Rule.of(config, reward) for reward in chosen.values()]
        self._functions = [self._function(reward) for reward in chosen.values()]
        away = sum(not function.here for function in self._functions)
        self._elsewhere = Elsewhere(away) if away else None

    def judge(self, completions: Sequence[Completion], *, when: str = "", step: int = 0) -> Judgement:
        """Reward completions, all functions side by side. when: in words, for the log. step: of the run, from 0.

        Judges get a copy of the entry each: what they do to it reaches no later prompt and no other completion. Raises
        RewardError where a function fails and its rule says so, ConfigError for a reward that is no number.
        """
        answers = [self._find_answer(completion.last) for completion in completions]
        order = sorted(range(len(self._functions)), key=lambda i: self._functions[i].here)  # what runs elsewhere, first
        begun = {i: self._functions[i].start(completions, answers, self._elsewhere, step=step) for i in order}
        verdicts = [begun[i].result() for i in range(len(self._functions))]
        ruled = [
            rule.applied(verdict.values, [c.problem.where for c in completions], when=when)
            for rule, verdict in zip(self._rules, verdicts, strict=True)
        ]
        parts = list(zip(*(rewards for rewards, _ in ruled), strict=True))
        return Judgement(
            [
                Judged(self._sum(part), self._is_right(answer, completion), answer, part)
                for part, answer, completion in zip(parts, answers, completions, strict=True)
            ],
            {name: errors for name, (_, errors) in zip(self.names, ruled, strict=True)},
            {name: verdict.seconds for name, verdict in zip(self.names, verdicts, strict=True)},
        )

    def close(self) -> None:
        """End the processes and the event loop that the functions run in."""
        for function in self._functions:
            function.close()
        if self._elsewhere:
            self._elsewhere.close()
            self._elsewhere = None

    def _function(self, config: RewardConfig) -> RewardFunction:
        if config.function == "graded":
            return RewardFunction(config, lambda answer, entry: self._scorer(answer, entry), importable=False)
        if config.function == "exact":
            return RewardFunction(
                config, lambda answer, entry: float(self._scorer(answer, entry) >= 1.0), importable=False
            )
        return RewardFunction.named(config)

    def _sum(self, parts: Sequence[float]) -> float:
        known = [w * r for w, r in zip(self._weights, parts, strict=True) if math.isfinite(r)]
        return math.fsum(known) if known else math.nan

    def _is_right(self, answer: str | None, completion: Completion) -> bool | None:
        if "answer" not in completion.problem.entry:
            return None
        return float(self._scorer(answer, copy.deepcopy(completion.problem.entry))) >= 1.0

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
    right = entry.get("answer")
    comparable = isinstance(right, str | int | float) and not isinstance(right, bool)
    return float(answer is not None and comparable and answer.strip() == str(right).strip())


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"task.answer_pattern: {error}") from error
