"""A reward function as it is written, and how it is called: by its signature, as TRL's, reasoning-gym's and others' are.

    def closeness(answer, entry): ...                           one completion: reasoning-gym's scorers
    def brevity(completion, completion_ids, truncated): ...     one completion: any of the names of `ONE`
    def accuracy(prompts, completions, answer, **columns): ...  all completions of a step: TRL's reward functions

Whatever has `prompts` or `completions` among its parameters is of the last kind. Each may be a coroutine function.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from grpo_training.config import ConfigError
from grpo_training.tasks.prompting import Problem

ONE = ("answer", "entry", "prompt", "completion", "completion_ids", "raw_completion", "truncated", "environment")


@dataclass(frozen=True, slots=True)
class Completion:
    """What is judged. text: without special tokens; raw: with them. truncated: cut at the length limit. turns: role and text of
    each, where an environment took part, and that environment."""

    problem: Problem
    text: str
    ids: list[int]
    raw: str
    truncated: bool
    turns: tuple[tuple[str, str], ...] = ()
    environment: Any = None

    @property
    def last(self) -> str:
        """What the policy said last: there its answer is looked for, and in nothing that a tool said."""
        return next((text for role, text in reversed(self.turns) if role == "assistant"), self.text)


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments, and the completions (by place) whose rewards come back: one, or as many as the answer is long."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """How a function takes its arguments. names: those that are passed by name; positional: (answer, entry) are not."""

    batched: bool
    positional: bool
    names: frozenset[str]
    columns: bool
    asynchronous: bool

    @classmethod
    def of(cls, function: Callable[..., Any], name: str) -> Signature:
        """Raises ConfigError for a function that takes neither kind of arguments."""
        asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  # an object's own, which may be a coroutine function
        )
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # written in C
            return cls(False, True, frozenset(), False, asynchronous)
        named = frozenset(n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        columns = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if named & {"prompts", "completions"}:
            return cls(True, False, named, columns, asynchronous)
        needed = {n for n in named if parameters[n].default is inspect.Parameter.empty}
        by_name = all(p.kind is not p.POSITIONAL_ONLY for p in parameters.values())
        if needed and by_name and needed <= set(ONE):
            return cls(False, False, named & frozenset(ONE), False, asynchronous)
        try:
            inspect.signature(function).bind(None, {})
        except TypeError as error:
            raise ConfigError(
                f"{name} takes ({', '.join(parameters)}): a reward function takes (answer, entry), names out of "
                f"{', '.join(ONE)}, or, for all completions at once, (prompts, completions, **columns)"
            ) from error
        return cls(False, True, frozenset(), False, asynchronous)

    def calls(
        self, completions: Sequence[Completion], answers: Sequence[str | None], *, step: int = 0, parts: int = 1
    ) -> list[Call]:
        """The calls for these completions; one for each, or in at most `parts` of whole groups where all go at once.

        step: of the run, from 0.
        """
        if not self.batched:
            return [self._one(i, c, a) for i, (c, a) in enumerate(zip(completions, answers, strict=True))]
        return [self._many(completions, places, step) for places in _cut(completions, parts)]

    def _one(self, place: int, completion: Completion, answer: str | None) -> Call:
        # A copy: what a function does to an entry reaches no later prompt and no other completion.
        entry = copy.deepcopy(completion.problem.entry)
        if self.positional:
            return Call((answer, entry), {}, (place,))
        values = {
            "answer": answer,
            "entry": entry,
            "prompt": copy.deepcopy(completion.problem.prompt),
            "completion": completion.text,
            "completion_ids": list(completion.ids),
            "raw_completion": completion.raw,
            "truncated": completion.truncated,
            "environment": completion.environment,
        }
        return Call((), {name: values[name] for name in self.names}, (place,))

    def _many(self, completions: Sequence[Completion], places: Sequence[int], step: int) -> Call:
        chosen = [completions[i] for i in places]
        entries = [copy.deepcopy(c.problem.entry) for c in chosen]
        keys = {key for entry in entries for key in entry} - {"prompt", "completion", "completion_ids"}
        values: dict[str, Any] = {key: [entry.get(key) for entry in entries] for key in sorted(keys)}
        values |= {
            "prompts": [copy.deepcopy(c.problem.prompt) for c in chosen],
            "completions": [_as_the_prompt(c) for c in chosen],
            "completion_ids": [list(c.ids) for c in chosen],
            "raw_completions": [c.raw for c in chosen],
            "truncated": [c.truncated for c in chosen],
            "trainer_state": SimpleNamespace(global_step=step),  # TRL's, as far as a reward depends on it
        }
        wanted = {n: v for n, v in values.items() if self.columns or n in self.names}
        if "environments" in self.names:  # for whoever names it: another process gets a copy, which not all have
            wanted["environments"] = [c.environment for c in chosen]
        return Call((), wanted, tuple(places))


def _as_the_prompt(completion: Completion) -> str | list[dict[str, str]]:
    """As TRL has it: the turns of assistant and tools after a conversation, else a text."""
    if isinstance(completion.problem.prompt, str):
        return completion.text
    turns = completion.turns or (("assistant", completion.text),)
    return [{"role": role, "content": text} for role, text in turns]


def _cut(completions: Sequence[Completion], parts: int) -> list[list[int]]:
    """Places in at most `parts` runs; the completions of one problem stay together, for a function may compare them."""
    groups: list[list[int]] = []
    for i, completion in enumerate(completions):
        if i and completion.problem is completions[i - 1].problem:
            groups[-1].append(i)
        else:
            groups.append([i])
    parts = max(1, min(parts, len(groups)))
    bounds = [round(k * len(groups) / parts) for k in range(parts + 1)]
    return [[i for group in groups[a:b] for i in group] for a, b in itertools.pairwise(bounds)]
