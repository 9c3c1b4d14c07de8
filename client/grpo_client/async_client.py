"""The client for asyncio. Only waiting is done here; see `client` for what each call means."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from grpo_client.arguments.types import CompletionMask, Completions, Ids, Prompts, WantedIds
from grpo_client.core import ClientCore
from grpo_client.errors import APIError, ConnectionFailed, GrpoClientError
from grpo_client.forks import PerProcess
from grpo_client.http.exchange import (
    Call,
    Encoding,
    Reply,
    info_call,
    raise_for_status,
    read_references,
    ready_call,
    references_call,
)
from grpo_client.http.retry import RetryPolicy
from grpo_client.http.tls import TLS
from grpo_client.http.tokenizer import detokenize_call, read_ids, read_text, tokenize_call
from grpo_client.http.transport import AsyncBaseTransport, AsyncTransport
from grpo_client.moving import Move, Steps, advance_move, not_away
from grpo_client.protocol import Extra, Normalizer, ReferenceInfo, ScoreRequest, ScoreResult, TopDtype
from grpo_client.settings import (
    DEFAULT_IN_FLIGHT,
    DEFAULT_REQUEST_TOKENS,
    DEFAULT_TIMEOUT,
    ClientOptions,
    ClientSettings,
)
from grpo_client.teachers import AsyncTeachers
from grpo_client.text import AnyRequest, Prompt, TextScoreRequest
from grpo_client.tokenizers import Vocabulary
from grpo_client.tracing import span
from grpo_client.uploading import OnProgress, Sending, Source, advance, model_files, same, unheard
from grpo_client.workers import closed

Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Connections:
    """What belongs to one event loop: connections, and how many requests may be on them."""

    transport: AsyncTransport
    slots: asyncio.Semaphore


@dataclass(slots=True)
class _Process:
    """What a client has of its own in each process."""

    core: ClientCore
    by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connections] = field(
        default_factory=lambda: WeakKeyDictionary()
    )


class AsyncReferenceClient:
    """`ReferenceClient` with awaitable calls; for overlap use `asyncio.create_task`.

    async with AsyncReferenceClient("http://localhost:8000") as client:
        result = await client.score([[1, 2, 3]], [[[4, 5], [6]]])

    Each event loop gets connections of its own, and so does each process after a fork; `aclose` closes those of the loop
    that it is awaited in.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_wait: float | None = None,
        encoding: Encoding = "tensors",
        fingerprint: str | None = None,
        max_request_tokens: int = DEFAULT_REQUEST_TOKENS,
        max_in_flight: int = DEFAULT_IN_FLIGHT,
        retry: RetryPolicy | None = None,
        tls: TLS | None = None,
        model: str | None = None,
        transport: AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        options = ClientOptions(
            api_key=api_key,
            timeout=timeout,
            max_wait=max_wait,
            encoding=encoding,
            fingerprint=fingerprint,
            max_request_tokens=max_request_tokens,
            max_in_flight=max_in_flight,
            retry=retry,
            tls=tls,
            model=model,
        )
        self._open(ClientSettings.of(base_url, options), transport, sleep)

    def _open(
        self, settings: ClientSettings, transport: AsyncBaseTransport | None, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._plugged = transport
        self._sleep = sleep
        self._closed = False
        self._processes = PerProcess[_Process](
            lambda before: _Process(ClientCore(settings, before.core if before else None))
        )

    async def score(
        self,
        prompts: Prompts,
        completions: Completions,
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        token_ids: WantedIds | None = None,
        completion_mask: CompletionMask | None = None,
        top_dtype: TopDtype = "float32",
    ) -> ScoreResult:
        """See `ReferenceClient.score`."""
        request = ScoreRequest.of(
            prompts,
            completions,
            temperature=temperature,
            normalizer=normalizer,
            extras=extras,
            top_k=top_k,
            token_ids=token_ids,
            completion_mask=completion_mask,
            top_dtype=top_dtype,
        )
        return await self.score_request(request)

    async def score_text(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[str]] | Sequence[str],
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        top_dtype: TopDtype = "float32",
    ) -> ScoreResult:
        """See `ReferenceClient.score_text`."""
        request = TextScoreRequest.of(
            prompts,
            completions,
            temperature=temperature,
            normalizer=normalizer,
            extras=extras,
            top_k=top_k,
            top_dtype=top_dtype,
        )
        return await self.score_request(request)

    async def score_request(self, request: AnyRequest) -> ScoreResult:
        """See `ReferenceClient.score_request`."""
        parts = self._core().plan(request)
        with span("grpo_client.score", {"grpo.parts": len(parts)}):
            return await self._joined(request, parts)

    async def _joined(self, request: AnyRequest, parts: Sequence[AnyRequest]) -> ScoreResult:
        tasks = [asyncio.create_task(self._score_part(part)) for part in parts]
        try:
            return self._core().join(request, await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # after a failure nobody wants the rest
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def tokenize(
        self, text: Prompt, *, add_special_tokens: bool = True, add_generation_prompt: bool = True
    ) -> NDArray[np.int32]:
        """See `ReferenceClient.tokenize`."""
        call = tokenize_call(
            text,
            add_special_tokens=add_special_tokens,
            add_generation_prompt=add_generation_prompt,
            model=self._core().model,
        )
        return await self._retried(self._core().settings.retry, read_ids, call)

    async def detokenize(self, ids: Ids) -> str:
        """See `ReferenceClient.detokenize`."""
        return await self._retried(self._core().settings.retry, read_text, detokenize_call(ids, self._core().model))

    def teachers(
        self,
        urls: Mapping[str, str | Sequence[str]],
        *,
        default: str | None = None,
        tokenizer: Literal["same"] | Vocabulary | None = None,
    ) -> AsyncTeachers:
        """See `ReferenceClient.teachers`."""
        settings = self._core().told()
        return AsyncTeachers(
            {name: _made_from(type(self), settings.at(url), self._plugged, self._sleep) for name, url in urls.items()},
            default=default,
            tokenizer=tokenizer,
        )

    async def info(self) -> ReferenceInfo:
        """See `ReferenceClient.info`."""
        core = self._core()
        return await self._retried(core.settings.retry, core.info, info_call(core.model))

    async def move(
        self, model: str, *, decay: float | None = None, revision: str | None = None, admin_key: str | None = None
    ) -> ReferenceInfo:
        """See `ReferenceClient.move`."""
        core = self._core()
        return core.moved(await self._carried_out(core.steps(Move(model, decay, revision, admin_key, core.model))))

    async def _carried_out(self, steps: Steps) -> list[ReferenceInfo]:
        step = advance_move(steps, None)
        while not isinstance(step, list):
            patient, urls = step.patient, list(step.calls)
            asked = [self._answer(call, url, patient) for url, call in step.calls.items()]
            step = advance_move(steps, dict(zip(urls, await asyncio.gather(*asked), strict=True)))
        return step

    async def _answer(self, call: Call, url: str, patient: bool) -> Reply | GrpoClientError:
        core, transport = self._core(), self._here().transport

        async def once() -> Reply:
            return not_away(await transport.send(call, url))

        policy = core.settings.retry
        try:
            if not patient:
                return await transport.send(call, url)
            return await policy.async_retrying(self._sleep, lambda: False, lambda: self._closed, core.log)(once)
        except GrpoClientError as error:
            return error

    async def upload(
        self, source: Source, *, on_progress: OnProgress | None = None, admin_key: str | None = None
    ) -> str:
        """See `ReferenceClient.upload`. Files are read, and `on_progress` is called, in a thread."""
        core, tell = self._core(), on_progress or unheard
        core.settings.check_key()
        files = await asyncio.to_thread(model_files, source)
        urls, size = core.settings.urls, sum(file.size for file in files)
        models: list[str] = []
        for n, url in enumerate(urls):
            sending = Sending(files, admin_key, lambda there, n=n: tell(n * size + there, len(urls) * size))
            models.append(await self._sent(sending, url))
        return same(models)

    async def _sent(self, sending: Sending, url: str) -> str:
        core, transport = self._core(), self._here().transport

        async def once() -> str | None:
            steps = sending.attempt()
            step = await asyncio.to_thread(advance, steps, None)
            try:
                while not isinstance(step, str):
                    step = await asyncio.to_thread(advance, steps, await transport.send(step, url))
            except GrpoClientError as error:
                if not sending.goes_on_after(error):
                    raise
                return None
            core.log.answered(url)
            return step

        model: str | None = None
        while model is None:
            retry = core.settings.retry
            model = await retry.async_retrying(self._sleep, lambda: False, lambda: self._closed, core.log)(once)
        return model

    async def references(self) -> dict[str, ReferenceInfo]:
        """See `ReferenceClient.references`."""
        return await self._retried(self._core().settings.retry, read_references, references_call())

    async def load(
        self,
        name: str,
        source: str,
        *,
        revision: str | None = None,
        base: str | None = None,
        admin_key: str | None = None,
    ) -> ReferenceInfo:
        """See `ReferenceClient.load`."""
        infos = await self._carried_out(self._core().load_steps(name, source, revision, base, admin_key))
        return infos[0]

    async def drop(self, name: str, *, admin_key: str | None = None) -> None:
        """See `ReferenceClient.drop`."""
        await self._carried_out(self._core().drop_steps(name, admin_key))

    async def accept(self) -> ReferenceInfo:
        """See `ReferenceClient.accept`."""
        core = self._core()
        return await self._retried(core.settings.retry, core.accepted, info_call(core.model))

    async def health(self) -> bool:
        """See `ReferenceClient.health`."""
        try:
            await self._retried(RetryPolicy(max_wait=0), raise_for_status, ready_call())
        except (ConnectionFailed, APIError):
            return False
        return True

    async def wait_ready(self, timeout: float | None = None) -> ReferenceInfo:
        """See `ReferenceClient.wait_ready`."""
        core = self._core()
        policy = core.until_ready(timeout)
        await self._retried(policy, raise_for_status, ready_call())
        return await self._retried(policy, core.info, info_call(core.model))

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        if process := self._processes.made():
            connections = process.by_loop.get(asyncio.get_running_loop())
            if connections is not None:
                await connections.transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._processes.get().core!r})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        settings = self._processes.get().core.told().to_pickle()
        return _unpickled, (type(self), settings, self._plugged, self._sleep)

    def __copy__(self) -> Self:
        return _made_from(type(self), self._processes.get().core.told(), self._plugged, self._sleep)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def _core(self) -> ClientCore:
        if self._closed:
            raise closed()
        return self._processes.get().core

    def _here(self) -> _Connections:
        """The connections of this process and loop."""
        by_loop, loop = self._processes.get().by_loop, asyncio.get_running_loop()
        if (connections := by_loop.get(loop)) is None:
            settings = self._core().settings
            connections = _Connections(
                AsyncTransport(settings.transport(), self._plugged), asyncio.Semaphore(settings.max_in_flight)
            )
            by_loop[loop] = connections
        return connections

    async def _score_part(self, part: AnyRequest) -> ScoreResult:
        core = self._core()
        async with self._here().slots:
            return await self._retried(core.settings.retry, lambda reply: core.scores(reply, part), core.call(part))

    async def _retried(self, policy: RetryPolicy, read: Callable[[Reply], Answer], call: Call) -> Answer:
        core, connections = self._core(), self._here()
        core.settings.check_key()

        async def once() -> Answer:
            with core.balancer.lease(call.key) as url:
                answer = read(await connections.transport.send(call, url))
            core.log.answered(url)
            return answer

        return await policy.async_retrying(self._sleep, core.balancer.ready, lambda: self._closed, core.log)(once)


Kind = TypeVar("Kind", bound=AsyncReferenceClient)


def _unpickled(kind: type[Kind], settings: ClientSettings, transport: Any, sleep: Any) -> Kind:
    return _made_from(kind, settings.unpickled(), transport, sleep)


def _made_from(kind: type[Kind], settings: ClientSettings, transport: Any, sleep: Any) -> Kind:
    client = kind.__new__(kind)
    client._open(settings, transport, sleep)  # pyright: ignore[reportPrivateUsage]
    return client
