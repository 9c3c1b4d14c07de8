"""The one path from a request, whatever dialect it came in, to its result. A dialect is a file in `routes` that calls this.

    scoring: Annotated[Scoring, Depends(get_scoring)]
    result = await scoring.score(request)

A request is checked once: its shape by whoever read it, and what the model allows here, in the names of the native message; or
by a dialect in its own names, which then calls `score_checked`.

A reference may be replaced while a request is read: it is answered by the one that it was read for, as long as that is in
memory.
What depends on it (the model's name, the vocabulary, the tokenizer, the
identity in the answer) is taken from one `Hosted`, and only that one may score:

    async def answer(hosted: Hosted) -> Response: ... scoring.score(request, hosted) ...
    response = await scoring.by_one_reference(answer, model)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from grpo_client.protocol import HIDDEN, ReferenceInfo, ScoreRequest, ScoreResult
from grpo_client.text import TextScoreRequest
from grpo_client.validation.request import check_request

from grpo_server.access.caller import account
from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ReferenceReplaced, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.media import refuse_media
from grpo_server.scheduler.weight import is_large
from grpo_server.text.requests import no_tokenizer
from grpo_server.text.tokenizing import tokenize_request
from grpo_server.traced import traced_steps

T = TypeVar("T")


class Scoring:
    """Scores with whichever reference of the service is asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def hosted(self, model: str | None = None) -> Hosted:
        """Who answers under this name now; None: who answers by default. Raises ServiceError: 503 while loading, 404 where
        there is no such name."""
        return self._service.references.named(model).engine.hosted

    async def by_one_reference(self, answer: Callable[[Hosted], Awaitable[T]], model: str | None = None) -> T:
        """answer(who hosts), once more from the start if that was replaced before it had scored. model: the name that the
        request gives.

        Raises ServiceError: 503 while the server is closed, 404 where there is no such name; and what `answer` raises.
        """
        while True:
            self._service.scheduler.door.refuse_if_closed()
            try:
                return await answer(self.hosted(model))
            except ReferenceReplaced:
                continue

    async def score(self, request: ScoreRequest | TextScoreRequest, by: Hosted | None = None) -> ScoreResult:
        """Check, queue and compute. For text, the result carries the ids that were scored.

        request: of a shape that `check_structure` lets pass, as every decoder gives it. by: alone may answer; None: whoever
        answers under the name that the request gives. Raises ProtocolError (413, 422) for what the model does not allow,
        ServiceError for what cannot be served, ReferenceReplaced when another hosts than `by`.
        """
        if by is None:
            return await self.by_one_reference(
                lambda hosted: self.score(request, self._pinned(request, hosted)), request.model
            )
        if isinstance(request, TextScoreRequest):
            ids = await self._tokenize(request, by)
            result = await self._score_ids(ids, by)
            return replace(
                result,
                prompt_ids=tuple(g.prompt for g in ids.groups),
                completion_ids=tuple(c for g in ids.groups for c in g.completions),
            )
        return await self._score_ids(request, by)

    def _pinned(self, request: ScoreRequest | TextScoreRequest, hosted: Hosted) -> Hosted:
        """Who answers a pinned request while servers change together: who is held here, if that is the one."""
        if request.fingerprint is None or request.fingerprint == hosted.info.fingerprint:
            return hosted
        held = self._service.pinned(request.fingerprint, request.model)
        return hosted if held is None else held.hosted

    async def _tokenize(self, request: TextScoreRequest, by: Hosted) -> ScoreRequest:
        if by.tokenizer is None:
            raise no_tokenizer()
        return await tokenize_request(self._service, by.tokenizer, request, by.info.max_length)

    async def _score_ids(self, request: ScoreRequest, by: Hosted) -> ScoreResult:
        info = by.info
        if request.fingerprint is not None and request.fingerprint != info.fingerprint:
            raise ServiceError(
                ErrorCode.FINGERPRINT_MISMATCH,
                f"the request is pinned to {request.fingerprint}, and {info.fingerprint} (version {info.version}) answers "
                "here; ask the right server, or pin what GET /v1/reference shows",
                param="fingerprint",
            )
        if is_large(request):
            await self._service.in_codec(self._check, request, info)
        else:
            self._check(request, info)
        return await self.score_checked(request, by)

    def _check(self, request: ScoreRequest, info: ReferenceInfo) -> None:
        if HIDDEN in request.extras and info.hidden_size is None:
            raise ServiceError(
                ErrorCode.INVALID_VALUE,
                "return asks for hidden, and this server gives no hidden states; whoever runs it can allow them "
                "(--allow-hidden)",
                param="return",
            )
        check_request(
            request,
            vocab_size=info.vocab_size,
            max_length=info.max_length,
            max_top_k=self._service.config.max_top_k,
        )

    async def score_checked(self, request: ScoreRequest, by: Hosted) -> ScoreResult:
        """Queue and compute what was held against `by` already, which alone may answer. Raises ServiceError for images and for
        what cannot be served now, ReferenceReplaced when that one has left."""
        engine = self._service.hosting(by.info)
        if engine is None:
            raise ReferenceReplaced
        if by.media:
            await self._service.in_codec(refuse_media, request, by.media)
        with traced_steps() as journal:
            result = await self._service.scheduler.submit(request, account(), engine, journal)
        if result.reference != by.info:
            raise ReferenceReplaced
        return result
