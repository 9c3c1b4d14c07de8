"""The client for asyncio. Only waiting is done here; see `client` for what each call means."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar, Unpack

from grpo_client.calls import Call, Reply, info_call, raise_for_status, ready_call
from grpo_client.core import ClientCore, Ids, ScoreOptions, TextScoreOptions
from grpo_client.errors import APIError, ClientClosed, ConnectionFailed
from grpo_client.policy import RetryPolicy
from grpo_client.protocol import ReferenceInfo, ScoreRequest, ScoreResult
from grpo_client.settings import ClientOptions, ClientSettings
from grpo_client.text import AnyRequest, Prompt, TextScoreRequest
from grpo_client.transport import AsyncLine, AsyncTransport

Answer = TypeVar("Answer")


class AsyncReferenceClient:
    """`ReferenceClient` with awaitable calls; for overlap use `asyncio.create_task`. One event loop each.

    async with AsyncReferenceClient("http://localhost:8000") as client:
        result = await client.score([[1, 2, 3]], [[[4, 5], [6]]])
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        transport: AsyncLine | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **options: Unpack[ClientOptions],
    ) -> None:
        settings = ClientSettings.of(base_url, options)
        self._core = ClientCore(settings)
        self._transport = AsyncTransport(settings.line(), transport)
        self._sleep = sleep
        self._closed = False
        self._slots = asyncio.Semaphore(settings.max_in_flight)

    async def score(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Sequence[Ids]],
        **options: Unpack[ScoreOptions],
    ) -> ScoreResult:
        """See `ReferenceClient.score`."""
        return await self.score_request(ScoreRequest.of(prompts, completions, **options))

    async def score_text(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[str]],
        **options: Unpack[TextScoreOptions],
    ) -> ScoreResult:
        """See `ReferenceClient.score_text`."""
        return await self.score_request(TextScoreRequest.of(prompts, completions, **options))

    async def score_request(self, request: AnyRequest) -> ScoreResult:
        """See `ReferenceClient.score_request`."""
        tasks = [asyncio.create_task(self._score_part(part)) for part in self._core.plan(request)]
        try:
            return self._core.join(request, await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # after a failure nobody wants the rest
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def info(self) -> ReferenceInfo:
        """See `ReferenceClient.info`."""
        return await self._retried(self._core.settings.retry, self._core.info, info_call())

    async def health(self) -> bool:
        """See `ReferenceClient.health`."""
        try:
            await self._retried(RetryPolicy(max_wait=0), raise_for_status, ready_call())
        except (ConnectionFailed, APIError):
            return False
        return True

    async def wait_ready(self, timeout: float = 600.0) -> ReferenceInfo:
        """See `ReferenceClient.wait_ready`."""
        policy = replace(self._core.settings.retry, max_wait=timeout)
        await self._retried(policy, raise_for_status, ready_call())
        return await self._retried(policy, self._core.info, info_call())

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncReferenceClient({self._core!r})"

    async def _score_part(self, part: AnyRequest) -> ScoreResult:
        async with self._slots:
            return await self._retried(
                self._core.settings.retry, lambda reply: self._core.scores(reply, part), self._core.call(part)
            )

    async def _retried(self, policy: RetryPolicy, read: Callable[[Reply], Answer], call: Call) -> Answer:
        if self._closed:
            raise ClientClosed("this client is closed; build a new one")
        balancer = self._core.balancer

        async def once() -> Answer:
            with balancer.lease() as url:
                return read(await self._transport.send(call, url))

        return await policy.async_retrying(self._sleep, balancer.ready, lambda: self._closed)(once)
