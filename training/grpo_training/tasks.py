"""What the policy is asked and how its answers are judged: verifiable rewards, no reward model.

A task is an endless, shuffled walk over a dataset: the problems of step n follow from (seed, n) alone, so nothing has
to be remembered for a resume. Sources are reasoning-gym's procedural datasets and JSON lines; judges are the dataset's
own scorer or a Python function.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS
from transformers import PreTrainedTokenizerBase

from grpo_training.config import ConfigError, TaskConfig

Entry = Mapping[str, Any]
Scorer = Callable[[str | None, Entry], float]


@dataclass(frozen=True, slots=True)
class Problem:
    """One entry of the dataset and the prompt that asks for it, as token ids."""

    entry: Entry
    prompt_text: str
    prompt_ids: list[int]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a completion earned. correct: the answer is right by the dataset's scorer, whatever the reward says."""

    reward: float
    correct: bool
    answer: str | None


class Task:
    """Problems by step, and the judge of their answers."""

    def __init__(
        self, config: TaskConfig, tokenizer: PreTrainedTokenizerBase, *, max_prompt_tokens: int = 1024
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._entries, self._scorer = _source(config)
        self._reward = _reward(config.reward, self._scorer)
        self._pattern = None if config.answer_pattern is None else _compile(config.answer_pattern)

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
            chosen.append(self._ask(self._entries[int(orders[epoch][place])]))
        return chosen

    def judge(self, problem: Problem, completion: str) -> Judged:
        """Reward a completion's text (special tokens already removed)."""
        answer = self._find_answer(completion)
        return Judged(
            reward=float(self._reward(answer, problem.entry)),
            correct=float(self._scorer(answer, problem.entry)) >= 1.0,
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

    def _ask(self, entry: Entry) -> Problem:
        fields = {**entry.get("metadata", {}), **entry}
        try:
            question = self._config.template.format(**fields)
        except KeyError as error:
            raise ConfigError(f"task.template names {error}, but an entry has only: {', '.join(fields)}") from error
        if self._config.chat:
            turns = [{"role": "user", "content": question}]
            if self._config.system is not None:
                turns.insert(0, {"role": "system", "content": self._config.system})
            text = str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        else:
            text = question
        # The chat template has written its own special tokens; a plain prompt gets what the tokenizer adds.
        ids = list(self._tokenizer(text, add_special_tokens=not self._config.chat)["input_ids"])
        if not 0 < len(ids) <= self._max_prompt_tokens:
            raise ConfigError(
                f"a prompt has {len(ids)} tokens, allowed are 1 to {self._max_prompt_tokens} "
                f"(rollout.max_prompt_tokens): {text[:80]!r}"
            )
        return Problem(entry, text, ids)


def _source(config: TaskConfig) -> tuple[Sequence[Entry], Scorer]:
    if config.file is not None:
        return _read_lines(config.file), _same_text
    assert config.name is not None
    if config.name not in DATASETS:
        raise ConfigError(
            f"task.name: reasoning-gym has no dataset {config.name!r}; it has: {', '.join(sorted(DATASETS))}"
        )
    try:
        dataset = reasoning_gym.create_dataset(config.name, **config.kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"task.kwargs: reasoning-gym refuses them for {config.name}: {error}") from error
    return _Entries(dataset), lambda answer, entry: float(dataset.score_answer(answer, dict(entry)))


class _Entries(Sequence[Entry]):
    """A reasoning-gym dataset makes its entries when they are asked for; this gives it a sequence's type."""

    def __init__(self, dataset: ProceduralDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index]


def _read_lines(path: Path) -> list[Entry]:
    if not path.is_file():
        raise ConfigError(f"task.file: no file at {path}")
    entries: list[Entry] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"task.file: {path} line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict) or not {"question", "answer"} <= entry.keys():
            raise ConfigError(f"task.file: {path} line {number} needs the keys question and answer")
        entries.append(entry)
    if not entries:
        raise ConfigError(f"task.file: {path} holds no entries")
    return entries


def _same_text(answer: str | None, entry: Entry) -> float:
    return float(answer is not None and answer.strip() == str(entry["answer"]).strip())


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
