"""The one path from a request, whatever dialect it came in, to its result. A dialect is a file in `routes` that calls this.

    scoring: Annotated[Scoring, Depends(get_scoring)]
    result = await scoring.score(ScoreRequest.of(prompts, completions, temperature=0.7))

Everything is checked here once more against the model that will answer; errors name the native fields.
"""

from __future__ import annotations

from dataclasses import replace

from grpo_client.protocol import ReferenceInfo, ScoreRequest, ScoreResult
from grpo_client.text import TextScoreRequest
from grpo_client.validation import check_request, check_structure

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.service import Service
from grpo_server.text import no_tokenizer, tokenize_request


class Scoring:
    """Scores with whatever reference the service hosts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def info(self) -> ReferenceInfo:
        """Raises ServiceError (503) while loading."""
        return self._service.engine.info

    async def score(self, request: ScoreRequest | TextScoreRequest) -> ScoreResult:
        """Check, queue and compute. For text, the result carries the ids that were scored.

        Raises ProtocolError (400, 413, 422) for a request that is wrong, ServiceError for one that cannot be served.
        """
        if isinstance(request, TextScoreRequest):
            ids = await self._tokenize(request)
            result = await self._score_ids(ids)
            return replace(
                result,
                prompt_ids=tuple(g.prompt for g in ids.groups),
                completion_ids=tuple(c for g in ids.groups for c in g.completions),
            )
        return await self._score_ids(request)

    async def _tokenize(self, request: TextScoreRequest) -> ScoreRequest:
        """In ids of the reference that hosts now: again, if it was replaced while we were at it."""
        while True:
            self._service.scheduler.door.refuse_if_closed()
            engine = self._service.engine
            version = engine.info.version
            tokenizer = engine.tokenizer
            if tokenizer is None:
                raise no_tokenizer()
            check_structure(request)
            ids = await self._service.in_prepare(tokenize_request, tokenizer, request)
            if engine.info.version == version:
                return ids

    async def _score_ids(self, request: ScoreRequest) -> ScoreResult:
        scheduler, info = self._service.scheduler, self.info
        if request.fingerprint is not None and request.fingerprint != info.fingerprint:
            raise ServiceError(
                ErrorCode.FINGERPRINT_MISMATCH,
                f"the request is pinned to {request.fingerprint}, and {info.fingerprint} (version {info.version}) answers "
                "here; ask the right server, or pin what GET /v1/reference shows",
                param="fingerprint",
            )
        check_structure(request)
        check_request(
            request,
            vocab_size=info.vocab_size,
            max_length=info.max_length,
            max_top_k=self._service.config.max_top_k,
        )
        return await scheduler.submit(request)
