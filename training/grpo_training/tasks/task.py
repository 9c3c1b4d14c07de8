"""What the policy is asked and how its answers are judged: verifiable rewards, no reward model.

A task is an endless, shuffled walk over a dataset: the problems of step n follow from (seed, n) alone, so nothing has
to be remembered for a resume. Where entries come from is in `entries`, how they become text in `templates`; judges are the
dataset's own scorer or a Python function.
"""

from __future__ import annotations

import copy
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks.entries import Entry, Source, open_source
from grpo_training.tasks.rewards import as_reward
from grpo_training.tasks.templates import Template

_SLACK = 8  # tokens beyond a text's bytes that a tokenizer may make of it: BOS, a space put in front
Scorer = Callable[[str | None, Entry], float]


@dataclass(frozen=True, slots=True)
class Problem:
    """One entry of the dataset and the prompt that asks for it, as token ids. where: its place, in words."""

    entry: Entry
    prompt_text: str
    prompt_ids: list[int]
    where: str = "a row"


@dataclass(frozen=True, slots=True)
class Judged:
    """What a completion earned, NaN where that is not known. correct: the answer is right by the dataset's scorer, whatever
    the reward says."""

    reward: float
    correct: bool
    answer: str | None


class Task:
    """Problems by step, and the judge of their answers."""

    def __init__(
        self,
        config: TaskConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_prompt_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        """seed: of a reasoning-gym dataset whose kwargs name none. Raises ConfigError naming what cannot be used, and where."""
        self._config = config
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._template = Template(config.template)
        source = open_source(config, seed=seed)
        self._entries, self._places = source.entries, source.places
        self.fingerprint = source.fingerprint
        """Of the entries: a resumed run must be asked the same ones."""
        self._scorer = _scorer(source)
        self._reward = _reward(config.reward, self._scorer)
        self.reward_name = config.reward
        self._pattern = None if config.answer_pattern is None else _compile(config.answer_pattern)
        if source.dataset is None:
            self._check_all()

    def __len__(self) -> int:
        """Entries in the dataset; a run that needs more walks over it again in another order."""
        return len(self._entries)

    def problems(self, step: int, count: int, seed: int) -> list[Problem]:
        """The `count` problems of a step. Epoch e visits the entries in the permutation drawn from (seed, e)."""
        size = len(self._entries)
        orders: dict[int, np.ndarray] = {}
        chosen: list[Problem] = []
        for position in range(step * count, (step + 1) * count):
            epoch, place = divmod(position, size)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((seed, epoch)).permutation(size)
            chosen.append(self._ask(int(orders[epoch][place])))
        return chosen

    def judge(self, problem: Problem, completion: str) -> Judged:
        """Reward a completion's text (special tokens already removed).

        Judges get a copy of the entry each: what they do to it reaches no later prompt and no other completion. Raises
        ConfigError for a reward that is no number.
        """
        answer = self._find_answer(completion)
        reward = self._reward(answer, copy.deepcopy(problem.entry))
        return Judged(
            reward=as_reward(reward, name=self.reward_name, where=problem.where),
            correct=float(self._scorer(answer, copy.deepcopy(problem.entry))) >= 1.0,
            answer=answer,
        )

    def _find_answer(self, completion: str) -> str | None:
        if self._pattern is None:
            return completion.strip()
        matches = list(self._pattern.finditer(completion))
        if not matches:
            return None
        match = matches[0 if self._config.answer_match == "first" else -1]
        return match.group(1 if self._pattern.groups else 0)

    def _ask(self, index: int) -> Problem:
        entry, where = self._entries[index], self._places[index]
        text = self._prompt(self._template.render(entry, where))
        ids = self._ids(text)
        if not 0 < len(ids) <= self._max_prompt_tokens:
            raise ConfigError(
                f"{where}: a prompt has {len(ids)} tokens, allowed are 1 to {self._max_prompt_tokens} "
                f"(rollout.max_prompt_tokens): {text[:80]!r}"
            )
        return Problem(entry, text, ids, where)

    def _prompt(self, question: str) -> str:
        if not self._config.chat:
            return question
        turns = [{"role": "user", "content": question}]
        if self._config.system is not None:
            turns.insert(0, {"role": "system", "content": self._config.system})
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        # The chat template has written its own special tokens; a plain prompt gets what the tokenizer adds.
        return list(self._tokenizer(text, add_special_tokens=not self._config.chat)["input_ids"])

    def _check_all(self) -> None:
        """A row that cannot be asked ends the run before it begins, and not in an hour."""
        room = self._max_prompt_tokens - _SLACK - (len(self._ids(self._prompt("."))) if self._config.chat else 0)
        for index, (entry, where) in enumerate(zip(self._entries, self._places, strict=True)):
            # A tokenizer makes at most one token of a byte, so only long texts need to be tokenized to be sure.
            if len(self._template.render(entry, where).encode()) > room:
                self._ask(index)


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
