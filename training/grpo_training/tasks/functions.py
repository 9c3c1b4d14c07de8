"""A run's reward functions, called on the completions of a step: here, in processes, or as coroutines, all side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from grpo_training.config import RewardConfig
from grpo_training.coroutines import LoopThread
from grpo_training.tasks.calling import Call, Completion, Signature
from grpo_training.tasks.outcomes import Failed, Outcome, Returned, failure
from grpo_training.tasks.processes import Processes
from grpo_training.tasks.resolving import resolve

T = TypeVar("T")


class Elsewhere:
    """Threads that wait for processes, and one event loop for all coroutines of a run: clients kept by a reward function stay
    connected from step to step."""

    def __init__(self, functions: int) -> None:
        self.threads = ThreadPoolExecutor(max(functions, 1), "grpo-reward")
        self._loop = LoopThread("grpo-reward-loop")

    def awaited(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.awaited(work)

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)
        self._loop.close()


@dataclass(frozen=True, slots=True)
class Verdicts:
    """values: what a function gave for each completion, or why it gave nothing. seconds: that it took."""

    values: list[Outcome]
    seconds: float


class RewardFunction:
    """One function, with how it is run."""

    def __init__(self, config: RewardConfig, function: Callable[..., Any], *, importable: bool) -> None:
        """importable: False for what has no name that another process could find it by."""
        self._function = function
        self._signature = Signature.of(function, config.function)
        self._timeout = config.timeout
        self._at_once = config.workers
        self._processes: Processes | None = None
        if importable and not self._signature.asynchronous and (config.workers or config.timeout):
            self._processes = Processes(config.function, config.arguments, config.workers or 1, config.timeout)

    @classmethod
    def named(cls, config: RewardConfig) -> RewardFunction:
        """Raises ConfigError for a function that cannot be imported or called."""
        return cls(config, resolve(config.function, config.arguments), importable=True)

    @property
    def here(self) -> bool:
        """Whether it runs in this thread."""
        return self._processes is None and not self._signature.asynchronous

    def start(
        self,
        completions: Sequence[Completion],
        answers: Sequence[str | None],
        elsewhere: Elsewhere | None,
        *,
        step: int = 0,
    ) -> Future[Verdicts]:
        """Begin with what runs elsewhere; what runs here has run when this returns."""
        parts = self._at_once or 1 if self._processes else 1
        calls = self._signature.calls(completions, answers, step=step, parts=parts)
        if elsewhere is not None and not self.here:
            return elsewhere.threads.submit(self._run, calls, len(completions), elsewhere)
        done: Future[Verdicts] = Future()
        done.set_result(self._run(calls, len(completions), None))
        return done

    def close(self) -> None:
        if self._processes:
            self._processes.close()

    def _run(self, calls: list[Call], count: int, elsewhere: Elsewhere | None) -> Verdicts:
        started = time.perf_counter()
        if self._signature.asynchronous:
            assert elsewhere is not None
            outcomes = elsewhere.awaited(self._gathered(calls))
        else:
            outcomes = self._processes.run(calls) if self._processes else [self._called(call) for call in calls]
        values: list[Outcome] = [Failed("nothing was returned for it")] * count
        for call, outcome in zip(calls, outcomes, strict=True):
            for place, value in zip(call.places, self._spread(call, outcome), strict=True):
                values[place] = value
        return Verdicts(values, time.perf_counter() - started)

    def _called(self, call: Call) -> Outcome:
        try:
            return Returned(self._function(*call.args, **call.kwargs))
        except Exception as error:  # noqa: BLE001  # whatever a user's function raises is told to the run, whose rule decides
            return failure(error)

    async def _gathered(self, calls: list[Call]) -> list[Outcome]:
        free = asyncio.Semaphore(self._at_once or max(len(calls), 1))

        async def one(call: Call) -> Outcome:
            async with free:
                try:
                    answer: Awaitable[Any] = self._function(*call.args, **call.kwargs)
                    return Returned(await asyncio.wait_for(answer, self._timeout))
                except TimeoutError as error:
                    return (
                        failure(error) if self._timeout is None else Failed(f"it took longer than {self._timeout:g} s")
                    )
                except Exception as error:  # noqa: BLE001
                    return failure(error)

        return await asyncio.gather(*(one(call) for call in calls))

    def _spread(self, call: Call, outcome: Outcome) -> list[Outcome]:
        """One outcome for each completion of the call."""
        if isinstance(outcome, Failed) or not self._signature.batched:
            return [outcome] * len(call.places)
        try:
            rewards = list(outcome.value)
        except TypeError:
            rewards = None
        if rewards is None or len(rewards) != len(call.places):
            told = "no list" if rewards is None else f"{len(rewards)} rewards"
            return [Failed(f"it gave {told} for {len(call.places)} completions")] * len(call.places)
        return [Returned(reward) for reward in rewards]
