"""POST /inference/v1/generate, vLLM's tokens-in-tokens-out route, as prime-rl and verl send it to score a sequence.

`prompt_logprobs` gives every position's best tokens; `prompt_logprob_token_ids` gives the log-probs of a row of asked ids
at each position from `prompt_logprob_start` on, as a base64 float32 .npy matrix. What goes through /v1/completions is in
`openai`.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from grpo_client.masking import PAD
from grpo_client.protocol import IntArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.logs import request_id
from grpo_server.routes._bodies import Ids, PaddedIds, described, form_of, id_array, json_response, read_json
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to
from grpo_server.routes.dialects._prompt_logprobs import best_of, prompt_logprobs
from grpo_server.routes.dialects._refusals import check_new_tokens, generation, scoring_temperature
from grpo_server.routes.dialects._sampling import Best, Sampling, best_count, changes_nothing
from grpo_server.routes.dialects._sequence_checks import Names, check_size
from grpo_server.routes.dialects._sequence_values import ScoredSequence, SequenceScores
from grpo_server.routes.dialects._sequences import score_sequences
from grpo_server.routes.dialects._strings import token_strings, wants_text

router = APIRouter(tags=["OpenAI and vLLM"])

DEFAULT_MAX_TOKENS = 16
NAMES = Names("token_ids", "sampling_params.prompt_logprobs", "sampling_params.prompt_logprob_token_ids")

# A row of ids for each position, or one for all of them.
AskedIds = Annotated[
    Annotated[PaddedIds, Tag("ids")] | Annotated[list[PaddedIds], Field(fail_fast=True), Tag("sequences")],
    Discriminator(lambda value: "ids" if form_of(value) == "ids" and len(value) else "sequences"),
]


class SamplingParams(Sampling):
    """Fields that only shape generated text are ignored."""

    unable = ("flat_logprobs", "truncate_prompt_tokens")

    max_tokens: int | None = Field(None, description="0, or 1 for the likeliest next token as well.")
    logprobs: Best = Field(None, description="So many best tokens after the sequence; needs max_tokens=1.")
    logprob_token_ids: Ids | None = Field(
        None, description="Ids to score after the sequence, in place of the best; needs logprobs and max_tokens=1."
    )
    prompt_logprobs: Best = Field(None, description="So many best tokens a position; -1: the whole vocabulary.")
    prompt_logprob_token_ids: AskedIds | None = Field(
        None,
        description="A row of ids for every position from prompt_logprob_start + 1 on, -1 pads; or one row for all of them.",
    )
    prompt_logprob_start: int | None = Field(None, ge=0, description="Row i predicts token start + i + 1; 0.")
    detokenize: bool | None = Field(None, description="Give the text of each id; unasked for up to 20 best tokens.")
    flat_logprobs: Any = Field(None, description="false")
    truncate_prompt_tokens: int | None = Field(None, description="null: sequences are scored whole.")


class GenerateRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    token_ids: Ids
    sampling_params: SamplingParams
    model: str | None = None
    request_id: str | None = None
    stream: Any = Field(None, description="false")
    features: Any = Field(None, description="null: text only.")
    return_token_ids: bool | None = None

    def check(self) -> bool:
        """True if the next token is wanted. Raises ServiceError (422) for what asks for generation, or for nothing."""
        for name in ("stream", "features"):
            if not changes_nothing(name, getattr(self, name)):
                raise generation(f"{name} is set", name, f"leave {name} out")
        params = self.sampling_params
        params.refuse_shaping("sampling_params.")
        wants_next = check_new_tokens(params.max_tokens, "sampling_params.max_tokens", DEFAULT_MAX_TOKENS)
        if not wants_next and params.prompt_logprobs is None and params.prompt_logprob_token_ids is None:
            raise _wrong("prompt_logprobs", "is missing: nothing is asked; send prompt_logprobs=k")
        if params.logprobs is not None and not wants_next:
            raise _wrong("logprobs", "is of the token after the sequence: send max_tokens=1, or prompt_logprobs=k")
        if params.logprob_token_ids is not None:
            if params.logprobs is None:
                raise _wrong("logprob_token_ids", "needs logprobs beside it")
            if params.prompt_logprob_token_ids is not None:
                raise _wrong("logprob_token_ids", "does not go with prompt_logprob_token_ids; send two requests")
        return wants_next


@router.post("/inference/v1/generate", response_class=Response, openapi_extra=described(GenerateRequest))
async def generate(request: Request, scoring: ScoringDep, service: ServiceDep) -> Response:
    """Log-probs of one sequence's own tokens, and of asked ids beside them."""
    asked = await read_json(request, service, GenerateRequest)
    wants_next = asked.check()
    params = asked.sampling_params
    ids = id_array(asked.token_ids)
    next_ids = None if params.logprob_token_ids is None else id_array(params.logprob_token_ids)

    async def answer(hosted: Hosted) -> Response:
        info = hosted.info
        best = best_count(params.logprobs, "sampling_params.logprobs", info, service.config)
        prompt_best = best_count(params.prompt_logprobs, "sampling_params.prompt_logprobs", info, service.config)
        temperature = scoring_temperature(params.temperature, "sampling_params.temperature")
        check_size(service, info, len(ids), _width(params), NAMES, 0)
        first, asked_rows = _asked_rows(params, len(ids))
        [scores] = await score_sequences(
            service,
            scoring,
            hosted,
            [ScoredSequence(ids, 1, temperature, asked_rows, next_ids)],
            NAMES if next_ids is None else replace(NAMES, token_ids="sampling_params.logprob_token_ids"),
            top_k=max(best, prompt_best),
            extras=[] if params.prompt_logprobs is None else ["rank"],
            next_token=wants_next,
        )
        if params.logprobs is not None and scores.next_token is None:
            raise _wrong("logprobs", f"is of a next token; {len(ids)} tokens fill the context, so there is none")
        by_id = best_of(scores, prompt_best)
        decoded = params.prompt_logprobs is not None and wants_text(params.detokenize, prompt_best)
        strings = await token_strings(service, hosted, [by_id] if decoded else ())
        name = asked.request_id or request_id.get()

        def body() -> dict[str, Any]:
            new = [] if scores.next_token is None else [scores.next_token.token_id]
            logprobs = None if params.logprobs is None else _next_logprobs(scores, best, next_ids)
            choice = {"index": 0, "token_ids": new, "logprobs": logprobs, "finish_reason": "length"}
            return {
                "request_id": name,
                "model": info.model,
                "system_fingerprint": info.fingerprint,
                "choices": [choice],
                "prompt_logprobs": None if params.prompt_logprobs is None else prompt_logprobs(by_id, strings),
                "prompt_token_id_logprobs": None if asked_rows is None else _npy(scores, first),
                "prompt_token_ids": ids.tolist() if asked.return_token_ids else None,
                "usage": {
                    "prompt_tokens": len(ids),
                    "completion_tokens": len(new),
                    "total_tokens": len(ids) + len(new),
                },
            }

        return await json_response(request, service, info, body)

    return await answer_to(request, scoring.by_one_reference(answer, asked.model))


def _width(params: SamplingParams) -> int:
    asked: Any = params.prompt_logprob_token_ids
    if asked is None:
        return 0
    return len(asked) if isinstance(asked, np.ndarray) else max(map(len, asked), default=0)


def _asked_rows(params: SamplingParams, length: int) -> tuple[int, IntArray | None]:
    """The first asked row, and ids for all length - 1 positions, PAD where nothing is asked."""
    asked: Any = params.prompt_logprob_token_ids
    start = params.prompt_logprob_start
    if asked is None:
        if start is not None:
            raise _wrong("prompt_logprob_start", "needs prompt_logprob_token_ids beside it")
        return 0, None
    start = start or 0
    expected = length - 1 - start
    given: list[Any] = [asked] * max(expected, 1) if isinstance(asked, np.ndarray) else asked
    if expected < 1 or len(given) != expected:
        raise _wrong(
            "prompt_logprob_token_ids",
            f"has {len(given)} rows; {length} tokens from prompt_logprob_start={start} on take {max(expected, 0)}",
        )
    width = max(map(len, given))
    if width == 0:
        raise _wrong("prompt_logprob_token_ids", "holds no ids")
    rows = np.full((length - 1, width), PAD, dtype=np.int32)
    for row, ids in zip(rows[start:], given, strict=True):
        row[: len(ids)] = ids
    return start, rows


def _npy(scores: SequenceScores, first: int) -> str:
    """(rows, ids) float32 with -inf where nothing was asked, as .npy in base64."""
    buffer = io.BytesIO()
    np.save(buffer, scores.token_logprobs[first:].astype("<f4", copy=False), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _next_logprobs(scores: SequenceScores, k: int, asked: IntArray | None) -> dict[str, Any]:
    """Chat's form, with ids for tokens, as vLLM gives it on this route: the next token, and beside it the best or the asked."""
    new = scores.next_token
    assert new is not None
    beside = zip(new.top_ids[:k].tolist(), new.top_logprobs[:k].tolist(), strict=True)
    if asked is not None:
        beside = zip(asked.tolist(), new.token_logprobs.tolist(), strict=True)

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": f"token_id:{token}", "logprob": logprob, "bytes": None}

    return {"content": [{**entry(new.token_id, new.logprob), "top_logprobs": [entry(*pair) for pair in beside]}]}


def _wrong(name: str, what: str) -> ServiceError:
    param = f"sampling_params.{name}"
    return ServiceError(ErrorCode.INVALID_VALUE, f"{param} {what}", param=param)
