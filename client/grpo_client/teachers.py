"""Several teachers behind one call: each prompt scored by its own, or all of them mixed into one.

    with client.teachers({"math": "http://a:8000", "code": ["http://b:8000", "http://c:8000"]}) as teachers:
        teachers.score(prompts, completions, teacher=["math", "code", "math"], token_ids=ids)
        teachers.score(prompts, completions, mixture={"math": 0.5, "code": 0.5}, top_k=64)

A mixture is of probabilities: log p = logsumexp over the teachers of log w + log p.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, Literal, Protocol, Self, TypeVar, Unpack

from grpo_client.arguments.types import Completions, Prompts
from grpo_client.core import ScoreOptions
from grpo_client.errors import ProtocolError
from grpo_client.mixtures import mixed
from grpo_client.protocol import ReferenceInfo, ScoreRequest, ScoreResult
from grpo_client.routing import Plan, TeacherResult, known, names_of, routed
from grpo_client.tokenizers import Vocabulary, check_tokenizers, local_identity


class Teacher(Protocol):
    """What is needed of a client."""

    def submit_request(self, request: ScoreRequest) -> Future[ScoreResult]: ...

    def info(self) -> ReferenceInfo: ...

    def close(self) -> None: ...


class AsyncTeacher(Protocol):
    """What is needed of an async client."""

    async def score_request(self, request: ScoreRequest) -> ScoreResult: ...

    async def info(self) -> ReferenceInfo: ...

    async def aclose(self) -> None: ...


Client = TypeVar("Client")


class _Several(Generic[Client]):
    """What both kinds share: who the teachers are, and who is asked what."""

    def __init__(
        self,
        clients: Mapping[str, Client],
        *,
        default: str | None = None,
        tokenizer: Literal["same"] | Vocabulary | None = None,
    ) -> None:
        if not clients:
            raise ProtocolError("teachers is empty; name at least one", "teachers", "no_teachers")
        self._clients, self._default = dict(clients), default
        self._compare, self._local = tokenizer is not None, local_identity(tokenizer)
        if default is not None:
            known(default, self._clients, "default")

    def _plan(
        self, request: ScoreRequest, teacher: str | Sequence[str | None] | None, mixture: Mapping[str, float] | None
    ) -> Plan:
        if mixture is None:
            return routed(request, names_of(teacher, self._clients, self._default, len(request.groups)))
        if teacher is not None:
            raise ProtocolError("give either teacher or mixture, not both", "mixture", "wrong_value")
        return mixed(request, mixture, self._clients)

    def _check(self, infos: Mapping[str, ReferenceInfo]) -> None:
        check_tokenizers(infos, self._local)
        self._compare = False


class Teachers(_Several[Teacher]):
    """clients: a client for each teacher. default: who scores groups of no teacher; None: each must have one.

    tokenizer: "same" compares the teachers' tokenizers before the first score; a tokenizer of transformers (the student's)
    compares them with that one. Closes its clients. Raises ProtocolError for no teachers and for a default that is none of
    them.
    """

    def score(
        self,
        prompts: Prompts,
        completions: Completions,
        *,
        teacher: str | Sequence[str | None] | None = None,
        mixture: Mapping[str, float] | None = None,
        **options: Unpack[ScoreOptions],
    ) -> TeacherResult:
        """Score each group by its teacher, all teachers at once, or every group by all of a mixture.

        teacher: one name, or one per prompt; None: the default. mixture: teachers and their weights, which add up to 1.
        Options: as `ReferenceClient.score` has them. The best tokens of a mixture take two scorings or more: the teachers'
        own best, then of all teachers the union of those, which must be within what the servers give (`--max-top-k`).
        Raises what `ReferenceClient.score` raises, and ProtocolError for an unknown teacher.
        """
        plan = self._plan(ScoreRequest.of(prompts, completions, **options), teacher, mixture)
        if self._compare:
            self.check_tokenizers()
        asked = next(plan)
        while True:
            futures = {name: self._clients[name].submit_request(request) for name, request in asked.items()}
            results = {name: future.result() for name, future in futures.items()}
            try:
                asked = plan.send(results)
            except StopIteration as done:
                return done.value

    def check_tokenizers(self) -> None:
        """Raises InvalidResponse, with both sizes, unless all teachers have the same tokens under the same ids, which are
        the local tokenizer's where one was given."""
        self._check({name: client.info() for name, client in self._clients.items()})

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTeachers(_Several[AsyncTeacher]):
    """`Teachers` with awaitable calls, of async clients."""

    async def score(
        self,
        prompts: Prompts,
        completions: Completions,
        *,
        teacher: str | Sequence[str | None] | None = None,
        mixture: Mapping[str, float] | None = None,
        **options: Unpack[ScoreOptions],
    ) -> TeacherResult:
        """See `Teachers.score`."""
        plan = self._plan(ScoreRequest.of(prompts, completions, **options), teacher, mixture)
        if self._compare:
            await self.check_tokenizers()
        asked = next(plan)
        while True:
            tasks = {n: asyncio.create_task(self._clients[n].score_request(r)) for n, r in asked.items()}
            try:
                results = dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
            finally:
                for task in tasks.values():  # after a failure nobody wants the rest
                    task.cancel()
                await asyncio.gather(*tasks.values(), return_exceptions=True)
            try:
                asked = plan.send(results)
            except StopIteration as done:
                return done.value

    async def check_tokenizers(self) -> None:
        """See `Teachers.check_tokenizers`."""
        infos = await asyncio.gather(*(client.info() for client in self._clients.values()))
        self._check(dict(zip(self._clients, infos, strict=True)))

    async def aclose(self) -> None:
        """Close the clients' connections."""
        for client in self._clients.values():
            await client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
