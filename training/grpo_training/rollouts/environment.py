"""A user's environment: made once for each completion, told its row, and asked after every turn of the policy.

    class Calculator:
        def reset(self, entry): ...      may be left out; what it returns is put behind the prompt, before the first turn
        def step(self, text): ...        a text or messages to go on with, None when the talk is over
        def close(self): ...             may be left out

Each may be a coroutine function: then those of all completions run at once.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from grpo_training.config import ConfigError, EnvironmentConfig, EnvironmentFailed
from grpo_training.coroutines import LoopThread
from grpo_training.importing import imported
from grpo_training.rollouts.observations import Observation, Reader
from grpo_training.rollouts.rollout import Episode

_FIELD = "rollout.environment"
_METHODS = ("reset", "step", "close")


class Asked(Protocol):
    """A row, and what is said of it in errors."""

    @property
    def entry(self) -> Mapping[str, Any]: ...

    @property
    def where(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a user's method. told: which of them, for whom, in words."""

    method: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    told: str


class Environments:
    """All environments of a run. Close it when the run is over."""

    def __init__(self, options: EnvironmentConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ConfigError for a class that cannot be imported, has no `step`, or has a timeout that nothing can keep."""
        self._options = options
        self._factory: Callable[..., Any] = imported(options.factory, field=_FIELD)
        self.reader = Reader(tokenizer, limit=options.max_observation_tokens)
        if not callable(self._factory):
            raise ConfigError(f"{_FIELD}: {options.factory} cannot be called: name a class")
        self._loop: LoopThread | None = None
        try:
            trial = self._made("at start")
        except EnvironmentFailed as error:
            raise ConfigError(f"{_FIELD}: {error}") from error
        if not callable(getattr(trial, "step", None)):
            raise ConfigError(f"{_FIELD}: {options.factory} has no method step(text)")
        awaited = any(inspect.iscoroutinefunction(getattr(trial, name, None)) for name in _METHODS)
        if options.timeout is not None and not awaited:
            raise ConfigError(
                f"{_FIELD}.timeout: {options.factory} has no coroutine function, and no other call can be ended"
            )
        if awaited:
            self._loop = LoopThread("grpo-environment-loop")
        self._all(self._calls("close", [(trial, "at start")]))

    @property
    def max_turns(self) -> int:
        """Of the policy in one completion."""
        return self._options.max_turns

    def begin(self, asked: Sequence[Asked], seeds: Sequence[int]) -> tuple[list[Episode], list[Observation | None]]:
        """An episode for each completion, and what its environment puts before the first turn.

        seeds: one for each, for a `reset` that takes one.
        """
        episodes = [Episode(self._made(of.where)) for of in asked]
        openings: list[Observation | None] = [None] * len(asked)
        resets = [
            _Call(reset, *_as_it_takes(reset, of.entry, seed), self._told("reset", of.where))
            for e, of, seed in zip(episodes, asked, seeds, strict=True)
            if callable(reset := getattr(e.environment, "reset", None))
        ]
        if resets:  # all have one, or none has: they are of one class
            values = self._all(resets)
            openings = [self._read(v, None, "reset", of.where) for v, of in zip(values, asked, strict=True)]
        return episodes, openings

    def answers(
        self, episodes: Sequence[Episode], asked: Sequence[Asked], wrote: Sequence[Sequence[int]], *, turn: int
    ) -> list[Observation | None]:
        """wrote: the ids of each one's turn, which is over. turn: from 1. None: its talk has ended."""
        places = [f"{of.where}, turn {turn}" for of in asked]
        texts = [self.reader.said(ids) for ids in wrote]
        values = self._all(
            [
                _Call(episode.environment.step, (text,), {}, self._told("step", place))
                for episode, text, place in zip(episodes, texts, places, strict=True)
            ]
        )
        return [
            self._read(value, ids[-1], "step", place) for value, ids, place in zip(values, wrote, places, strict=True)
        ]

    def end(self, episodes: Sequence[Episode], asked: Sequence[Asked]) -> None:
        """Their talks are over; rewards may still look at them."""
        self._all(self._calls("close", [(e.environment, of.where) for e, of in zip(episodes, asked, strict=True)]))

    def close(self) -> None:
        """End the event loop."""
        if self._loop:
            self._loop.close()

    def _made(self, where: str) -> Any:
        """Raises EnvironmentFailed."""
        [made] = self._all(
            [_Call(self._factory, (), dict(self._options.arguments), f"{self._options.factory} ({where})")]
        )
        return made

    def _calls(self, name: str, of: Sequence[tuple[Any, str]]) -> list[_Call]:
        """Of a method without arguments, where there is one."""
        return [
            _Call(method, (), {}, self._told(name, place))
            for environment, place in of
            if callable(method := getattr(environment, name, None))
        ]

    def _told(self, name: str, place: str) -> str:
        return f"{self._options.factory}.{name} ({place})"

    def _all(self, calls: Sequence[_Call]) -> list[Any]:
        """What each returned. Raises EnvironmentFailed for the first that failed."""
        outcomes = self._loop.awaited(self._gathered(calls)) if self._loop else [_called(call) for call in calls]
        for call, outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise EnvironmentFailed(f"{call.told}: {_why(outcome, self._options.timeout)}") from outcome
        return outcomes

    async def _gathered(self, calls: Sequence[_Call]) -> list[Any]:
        free = asyncio.Semaphore(self._options.concurrency)

        async def one(call: _Call) -> Any:
            async with free:
                value = call.method(*call.arguments, **call.named)
                return await asyncio.wait_for(value, self._options.timeout) if isinstance(value, Awaitable) else value

        return await asyncio.gather(*(one(call) for call in calls), return_exceptions=True)

    def _read(self, value: Any, last: int | None, name: str, place: str) -> Observation | None:
        try:
            return self.reader.read(value, last)
        except Exception as error:  # a chat template raises what it likes
            raise EnvironmentFailed(f"{self._told(name, place)}: {error}") from error


def _called(call: _Call) -> Any:
    try:
        return call.method(*call.arguments, **call.named)
    except Exception as error:  # noqa: BLE001  # a user's code; its failure is told by name
        return error


def _as_it_takes(
    reset: Callable[..., Any], entry: Mapping[str, Any], seed: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`seed` for one that names it, and the row: its first other argument or, as TRL has it, its fields by name."""
    # A copy: what an environment does to its row reaches no other completion.
    row = copy.deepcopy(dict(entry))
    parameters = inspect.signature(reset).parameters
    named = {"seed": seed} if "seed" in parameters else {}
    others = [p for name, p in parameters.items() if name != "seed"]
    if any(p.kind is p.VAR_KEYWORD for p in others):
        return (), {str(name): value for name, value in row.items()} | named
    return ((row,) if others else ()), named


def _why(error: BaseException, timeout: float | None) -> str:
    if isinstance(error, TimeoutError) and timeout is not None:
        return f"it took longer than {timeout:g} s"
    return f"{type(error).__name__}: {error}"
