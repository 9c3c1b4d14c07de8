"""POST /inference/v1/generate, vLLM's tokens-in-tokens-out route, as prime-rl and verl send it to score a sequence.

`prompt_logprobs` gives every position's best tokens; `prompt_logprob_token_ids` gives the log-probs of a row of asked ids
at each position from `prompt_logprob_start` on, as a base64 float32 .npy matrix. What goes through /v1/completions is in
`openai`.
"""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from grpo_client.protocol import IntArray
from pydantic import BaseModel, ConfigDict, Field

from grpo_server.engine.work import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.logs import request_id
from grpo_server.routes._bodies import Ids, PaddedIds, described, json_response, read_json
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to
from grpo_server.routes._prompt_logprobs import ids_shown, prompt_logprobs
from grpo_server.routes._refusals import check_model, check_new_tokens, generation, scoring_temperature
from grpo_server.routes._sequences import Names, Sequence, SequenceScores, check_width, id_array, score_sequences
from grpo_server.routes._strings import token_strings

router = APIRouter(tags=["OpenAI and vLLM"])

DEFAULT_MAX_TOKENS = 16
PAD = -1
NAMES = Names("token_ids", "sampling_params.prompt_logprobs", "sampling_params.prompt_logprob_token_ids")


class SamplingParams(BaseModel):
    """Fields that only shape generated text are ignored."""

    model_config = ConfigDict(extra="ignore")

    max_tokens: int | None = Field(None, description="0, or 1 for the likeliest next token as well.")
    temperature: float | None = Field(1.0, description="Logits are divided by it. 0 (greedy) scores at 1.")
    prompt_logprobs: int | None = Field(None, ge=0, description="So many best tokens a position.")
    prompt_logprob_token_ids: Annotated[list[PaddedIds], Field(fail_fast=True)] | None = Field(
        None, description="A row of ids for every position from prompt_logprob_start + 1 on; -1 pads."
    )
    prompt_logprob_start: int | None = Field(None, ge=0, description="Row i predicts token start + i + 1; 0.")
    detokenize: bool = Field(True, description="Give the text of each id.")
    n: int | None = Field(None, description="1")


class GenerateRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    token_ids: Ids
    sampling_params: SamplingParams
    model: str | None = None
    request_id: str | None = None
    stream: bool | None = Field(None, description="false")
    return_token_ids: bool | None = None

    def check(self) -> bool:
        """True if the next token is wanted. Raises ServiceError (422) for what asks for generation, or for nothing."""
        if self.stream:
            raise generation("stream is set", "stream", "leave stream out")
        params = self.sampling_params
        if params.n not in (None, 1):
            raise generation(f"n is {params.n}", "sampling_params.n", "leave n out")
        wants_next = check_new_tokens(params.max_tokens, "sampling_params.max_tokens", DEFAULT_MAX_TOKENS)
        if not wants_next and params.prompt_logprobs is None and params.prompt_logprob_token_ids is None:
            raise _wrong("prompt_logprobs", "is missing: nothing is asked; send prompt_logprobs=k")
        return wants_next


@router.post("/inference/v1/generate", response_class=Response, openapi_extra=described(GenerateRequest))
async def generate(request: Request, scoring: ScoringDep, service: ServiceDep) -> Response:
    """Log-probs of one sequence's own tokens, and of asked ids beside them."""
    asked = await read_json(request, service, GenerateRequest)
    wants_next = asked.check()
    params = asked.sampling_params
    ids = id_array(asked.token_ids)
    first, rows = _asked_rows(params, len(ids), service.config.max_top_k)

    async def answer(hosted: Hosted) -> Response:
        info, tokenizer = hosted.info, hosted.tokenizer if params.detokenize else None
        check_model(asked.model, info)
        [scores] = await score_sequences(
            service,
            scoring,
            hosted,
            [Sequence(ids, 1, scoring_temperature(params.temperature, "sampling_params.temperature"), rows)],
            NAMES,
            top_k=params.prompt_logprobs or 0,
            extras=[] if params.prompt_logprobs is None else ["rank"],
            next_token=wants_next,
        )
        shown = ids_shown(scores) if params.prompt_logprobs is not None else ()
        strings = await token_strings(service, tokenizer, shown)
        name = asked.request_id or request_id.get()

        def body() -> dict[str, Any]:
            new = [] if scores.next_token is None else [scores.next_token.token_id]
            choice = {"index": 0, "token_ids": new, "logprobs": None, "finish_reason": "length"}
            return {
                "request_id": name,
                "model": info.model,
                "system_fingerprint": info.fingerprint,
                "choices": [choice],
                "prompt_logprobs": None if params.prompt_logprobs is None else prompt_logprobs(scores, strings),
                "prompt_token_id_logprobs": None if rows is None else _npy(params, scores, first),
                "prompt_token_ids": ids.tolist() if asked.return_token_ids else None,
                "usage": {
                    "prompt_tokens": len(ids),
                    "completion_tokens": len(new),
                    "total_tokens": len(ids) + len(new),
                },
            }

        return await json_response(service, info, body)

    return await answer_to(request, scoring.by_one_reference(answer))


def _asked_rows(params: SamplingParams, length: int, most: int) -> tuple[int, IntArray | None]:
    """The first asked row, and ids for all length - 1 positions: what is not asked or is padding asks for id 0."""
    asked, start = params.prompt_logprob_token_ids, params.prompt_logprob_start
    if asked is None:
        if start is not None:
            raise _wrong("prompt_logprob_start", "needs prompt_logprob_token_ids beside it")
        return 0, None
    start = start or 0
    expected = length - 1 - start
    if expected < 1 or len(asked) != expected:
        raise _wrong(
            "prompt_logprob_token_ids",
            f"has {len(asked)} rows; {length} tokens from prompt_logprob_start={start} on take {max(expected, 0)}",
        )
    width = max(map(len, asked))
    if width == 0:
        raise _wrong("prompt_logprob_token_ids", "holds no ids")
    check_width(width, most, NAMES.token_ids)  # before a table that wide is laid out
    rows = np.zeros((length - 1, width), dtype=np.int32)
    for row, ids in zip(rows[start:], asked, strict=True):
        row[: len(ids)] = np.maximum(ids, 0)
    return start, rows


def _npy(params: SamplingParams, scores: SequenceScores, first: int) -> str:
    """(rows, ids) float32 with -inf where nothing was asked, as .npy in base64."""
    values = scores.token_logprobs[first:].copy()
    for row, ids in zip(values, params.prompt_logprob_token_ids or (), strict=True):
        row[: len(ids)][np.array(ids, dtype=np.int64) == PAD] = -np.inf
        row[len(ids) :] = -np.inf
    buffer = io.BytesIO()
    np.save(buffer, values.astype("<f4", copy=False), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _wrong(name: str, what: str) -> ServiceError:
    param = f"sampling_params.{name}"
    return ServiceError(ErrorCode.INVALID_VALUE, f"{param} {what}", param=param)
