"""The reference as the rules ask it (`grpo_client.findings.rescoring.Served`), from a thread beside the event loop.

What is asked goes the way of every request: checked, priced, queued. A long question is cut, so that others get their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, TypeVar

import numpy as np
from grpo_client.errors import ProtocolError, RequestRefused
from grpo_client.protocol import Extra, Group, IntArray, Normalizer, ScoreRequest, ScoreResult
from grpo_client.text import Prompt

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.scoring import Scoring
from grpo_server.text.requests import Tokenizer, encode, no_tokenizer, render_chat

T = TypeVar("T")
# In one request: some seconds of work for a small model on a CPU.
_TOKENS_A_REQUEST = 4096


class Stopped(Exception):
    """Nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the rules read of a ScoreResult, over several of them."""

    logprobs: Any
    extras: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ServedHere:
    """model: which reference; None: the default one. loop: of the server; its thread must not be the one that asks. stop: set
    once nobody waits any more."""

    scoring: Scoring
    service: Service
    loop: asyncio.AbstractEventLoop
    model: str | None = None
    stop: Event = field(default_factory=Event)

    def score(
        self,
        prompts: Any,
        completions: Any,
        *,
        temperature: float | list[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: tuple[Extra, ...] = (),
    ) -> Any:
        asked = ScoreRequest.of(prompts, completions, temperature=temperature, normalizer=normalizer, extras=extras)
        asked = replace(asked, model=self.model)
        results = [self._wait(self._score(part)) for part in _cut(asked)]
        return Answers(
            np.concatenate([result.logprobs for result in results]),
            {name: np.concatenate([result.extras[name] for result in results]) for name in extras},
        )

    def tokenize(
        self, text: Prompt, *, add_special_tokens: bool = True, add_generation_prompt: bool = True
    ) -> IntArray:
        tokenizer = self._tokenizer()

        def ids() -> IntArray:
            if isinstance(text, str):
                return encode(tokenizer, text, add_special_tokens=add_special_tokens, param="prompt")
            rendered = render_chat(tokenizer, text, add_generation_prompt=add_generation_prompt, param="messages")
            return encode(tokenizer, rendered, add_special_tokens=False, param="messages")

        return self._wait(self.service.in_tokenizer(ids))

    def detokenize(self, ids: Any) -> str:
        decode = self._tokenizer().decode
        return self._wait(self.service.in_tokenizer(decode, np.asarray(ids).tolist(), skip_special_tokens=False))

    def _tokenizer(self) -> Tokenizer:
        if (tokenizer := self.scoring.hosted(self.model).tokenizer) is None:
            raise _refused(no_tokenizer())
        return tokenizer

    async def _score(self, request: ScoreRequest) -> ScoreResult:
        """With patience while the queue is full: the rest of the questions would be lost with this one."""
        while True:
            try:
                return await self.scoring.score(request)
            except ServiceError as error:
                if error.code is not ErrorCode.QUEUE_FULL:
                    raise
                await asyncio.sleep(error.retry_after or 1.0)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self.stop.is_set():
            work.close()
            raise Stopped
        asked = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return asked.result()
        except ServiceError as error:
            if error.status in (400, 413, 422):
                raise _refused(error) from error
            raise
        except ProtocolError as error:
            raise RequestRefused(error.message, status=error.status, code=error.code, param=error.param) from error


def _refused(error: ServiceError) -> RequestRefused:
    return RequestRefused(error.message, status=error.status, code=error.code.code, param=error.param)


def _cut(request: ScoreRequest) -> Iterator[ScoreRequest]:
    """The same groups in requests of a bounded size; a group stays whole, for its prompt is computed once."""
    groups: list[Group] = []
    tokens = 0
    for group in request.groups:
        size = len(group.prompt) + sum(map(len, group.completions))
        if groups and tokens + size > _TOKENS_A_REQUEST:
            yield _of(groups, request)
            groups, tokens = [], 0
        groups.append(group)
        tokens += size
    if groups:
        yield _of(groups, request)


def _of(groups: Sequence[Group], request: ScoreRequest) -> ScoreRequest:
    return replace(request, groups=tuple(groups))
