"""A row of a dataset, checked before a run begins: what it must hold, under which names.

{"question": "1+1?", "answer": 2}                                    put through template and chat template
{"prompt": "1+1="}                                                   TRL's: the text as it is
{"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2"}     TRL's: through the chat template
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_training.config import BUILT_IN, ConfigError, TaskConfig
from grpo_training.tasks.templates import kind_of

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """What every row of a source must hold. columns: our names -> the source's. answers: whether an answer is compared."""

    columns: Mapping[str, str]
    answers: bool

    @classmethod
    def of(cls, config: TaskConfig) -> Rows:
        functions = [reward.function for reward in config.rewards.values()] or [config.reward]
        return cls(config.columns, any(function in BUILT_IN for function in functions))

    def checked(self, row: Any, where: str) -> Entry:
        """The row under our names. Raises ConfigError that names the place and the field."""
        if not isinstance(row, Mapping):
            raise ConfigError(f"{where} is {kind_of(row)}, and must be an object with the keys question and answer")
        entry = dict(row)
        for ours, theirs in self.columns.items():
            if theirs not in entry:
                raise ConfigError(f"{where} has no {theirs}, which task.columns names for {ours}")
            entry[ours] = entry[theirs]
        if "prompt" in entry and "question" not in self.columns:
            _check_prompt(entry["prompt"], where)
            entry.pop("question", None)  # the prompt is what is asked
        elif "question" in entry:
            _check_question(entry["question"], where)
        else:
            raise ConfigError(
                f"{where} needs the keys question and answer; it has no question, and no prompt (task.columns can name them)"
            )
        self._check_answer(entry, where)
        if not isinstance(entry.get("metadata") or {}, Mapping):
            raise ConfigError(f"{where}: metadata is {kind_of(entry['metadata'])}, and must be an object")
        return entry

    def _check_answer(self, entry: Entry, where: str) -> None:
        if not self.answers:
            return
        if "answer" not in entry:
            raise ConfigError(
                f"{where} needs the keys question and answer; it has no answer, with which exact and graded compare"
            )
        answer = entry["answer"]
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ConfigError(
                f"{where}: answer is {kind_of(answer)}, and must be a string or a number to be compared with what is said; a "
                f"reward function of your own takes any"
            )


def _check_question(question: object, where: str) -> None:
    if not isinstance(question, str) or not question.strip():
        found = "blank" if isinstance(question, str) else kind_of(question)
        raise ConfigError(f"{where}: question is {found}, and must be a string with text in it")


def _check_prompt(prompt: object, where: str) -> None:
    if isinstance(prompt, str):
        if not prompt:
            raise ConfigError(f"{where}: prompt is empty")
        return
    if not isinstance(prompt, list) or not prompt:
        raise ConfigError(f"{where}: prompt is {kind_of(prompt)}, and must be a string or a list of turns")
    for i, turn in enumerate(prompt):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            raise ConfigError(f"{where}: prompt[{i}] must be a turn such as {{'role': 'user', 'content': 'text'}}")
        if not isinstance(turn.get("content"), str):
            raise ConfigError(
                f"{where}: prompt[{i}].content is {kind_of(turn.get('content'))}, and must be a string; no images"
            )
