"""POST /v1/completions as OpenAI and vLLM have it, for those who send it to score a prompt.

`echo` with `logprobs`: lm-evaluation-harness, openai-python, PipelineRL. `prompt_logprobs`: TRL, verl. Both at once if
asked. max_tokens=1 is answered with the likeliest next token, which a scoring pass knows anyway; more is generation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from grpo_client.protocol import ReferenceInfo
from pydantic import BaseModel, ConfigDict, Field

from grpo_server.engine.work import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.logs import request_id
from grpo_server.routes._bodies import Prompt, described, form_of, json_response, read_json
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to
from grpo_server.routes._echo import Show, Shown, new_ids
from grpo_server.routes._prompt_logprobs import ids_shown, prompt_logprobs
from grpo_server.routes._refusals import check_model, check_new_tokens, generation, scoring_temperature
from grpo_server.routes._sequences import Names, SequenceScores, id_array, score_sequences
from grpo_server.routes._sequences import Sequence as Scored
from grpo_server.routes._strings import encode_texts, token_strings
from grpo_server.service import Service
from grpo_server.text import Tokenizer

router = APIRouter(tags=["OpenAI and vLLM"])

DEFAULT_MAX_TOKENS = 16  # what OpenAI and vLLM generate when max_tokens is left out


class CompletionRequest(BaseModel):
    """Fields that only shape generated text (top_p, stop, seed, penalties ...) are ignored: nothing is generated."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    prompt: Prompt
    max_tokens: int | None = Field(None, description="0, or 1 for the likeliest next token as well.")
    temperature: float | None = Field(1.0, description="Logits are divided by it. 0 (greedy) scores at 1.")
    echo: bool = Field(False, description="Report the tokens of the prompt.")
    logprobs: int | None = Field(
        None, ge=0, description="So many best tokens a position, beside the one that is there."
    )
    prompt_logprobs: int | None = Field(None, ge=0, description="The same in vLLM's form, by token id.")
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    add_special_tokens: bool = Field(True, description="For text prompts.")

    n: int | None = Field(None, description="1")
    best_of: int | None = Field(None, description="1")
    stream: bool | None = Field(None, description="false")
    suffix: str | None = Field(None, description="null")
    use_beam_search: bool | None = Field(None, description="false")
    logit_bias: dict[str, float] | None = Field(None, description="null: the reference's own distribution is scored.")
    truncate_prompt_tokens: int | None = Field(None, description="null: prompts are scored whole.")
    prompt_embeds: Any = Field(None, description="null")

    def check(self) -> bool:
        """True if the next token is wanted. Raises ServiceError (422) for what asks for generation."""
        for name in ("n", "best_of"):
            if (value := getattr(self, name)) not in (None, 1):
                raise generation(f"{name} is {value}", name, f"leave {name} out")
        unable = ("stream", "suffix", "use_beam_search", "logit_bias", "truncate_prompt_tokens", "prompt_embeds")
        for name in unable:
            if getattr(self, name):
                raise generation(f"{name} is set", name, f"leave {name} out")
        wants_next = check_new_tokens(self.max_tokens, "max_tokens", DEFAULT_MAX_TOKENS)
        if not (wants_next or self.echo or self.prompt_logprobs is not None):
            raise ServiceError(
                ErrorCode.INVALID_VALUE,
                "nothing is asked: send echo=true with logprobs=k, or prompt_logprobs=k",
                param="echo",
            )
        return wants_next


@router.post("/v1/completions", response_class=Response, openapi_extra=described(CompletionRequest))
async def completions(request: Request, scoring: ScoringDep, service: ServiceDep) -> Response:
    """Log-probs of the prompts' own tokens: `echo` and `logprobs` as OpenAI has it, or `prompt_logprobs` as vLLM has it."""
    asked = await read_json(request, service, CompletionRequest)
    wants_next = asked.check()
    temperature = scoring_temperature(asked.temperature)

    async def answer(hosted: Hosted) -> Response:
        info, tokenizer = hosted.info, hosted.tokenizer
        check_model(asked.model, info)
        ids = await _ids(service, tokenizer, asked)
        scores = await score_sequences(
            service,
            scoring,
            hosted,
            [Scored(s, temperature=temperature) for s in ids],
            Names(top="logprobs" if asked.prompt_logprobs is None else "prompt_logprobs"),
            top_k=max(asked.logprobs or 0, asked.prompt_logprobs or 0),
            extras=["rank"] if asked.prompt_logprobs is not None else [],
            next_token=wants_next,
        )
        if asked.echo and wants_next:
            _check_room(scores, info.max_length)
        strings = await token_strings(
            service, tokenizer, (i for s in _with_strings(asked, scores) for i in ids_shown(s))
        )
        shown = await service.in_prepare(_shown, tokenizer, asked, scores)
        name = f"cmpl-{request_id.get()}"
        return await json_response(service, info, lambda: _body(name, asked, scores, strings, shown, info))

    return await answer_to(request, scoring.by_one_reference(answer))


@router.post("/v1/chat/completions", include_in_schema=False)
async def chat() -> None:
    raise generation("/v1/chat/completions generates", "messages", "score messages with POST /v1/logprobs")


async def _ids(service: Service, tokenizer: Tokenizer | None, asked: CompletionRequest) -> list[Any]:
    form = form_of(asked.prompt)
    if form == "ids":
        return [id_array(asked.prompt)]  # pyright: ignore[reportArgumentType]
    if form == "sequences":
        return [id_array(s) for s in asked.prompt]  # pyright: ignore[reportArgumentType]
    texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    special = asked.add_special_tokens
    return await encode_texts(service, tokenizer, texts, "prompt[{}]", add_special_tokens=special)  # pyright: ignore[reportArgumentType]


def _with_strings(asked: CompletionRequest, scores: Sequence[SequenceScores]) -> Sequence[SequenceScores]:
    return scores if asked.prompt_logprobs is not None else ()


def _shown(tokenizer: Tokenizer | None, asked: CompletionRequest, scores: Sequence[SequenceScores]) -> list[Shown]:
    prompts = {"text": [asked.prompt], "texts": asked.prompt}.get(form_of(asked.prompt), [None] * len(scores))
    show = Show(
        tokenizer,
        echo=asked.echo,
        best=asked.logprobs or 0,
        as_ids=asked.return_tokens_as_token_ids,
        add_special_tokens=asked.add_special_tokens,
    )
    return [show(s, prompt) for s, prompt in zip(scores, prompts, strict=True)]  # pyright: ignore[reportArgumentType]


def _check_room(scores: Sequence[SequenceScores], max_length: int) -> None:
    """Clients of `echo` cut the last entry off as the generated one: without one they would lose a token's score."""
    for i, s in enumerate(scores):
        if s.next_token is None:
            raise ServiceError(
                ErrorCode.CONTEXT_LENGTH,
                f"prompt[{i}] fills the model's context of {max_length} tokens, so that max_tokens=1 has no room; "
                "shorten it by one token, or send max_tokens=0",
                param=f"prompt[{i}]",
            )


def _body(
    name: str,
    asked: CompletionRequest,
    scores: Sequence[SequenceScores],
    strings: Mapping[int, str | None],
    shown: Sequence[Shown],
    info: ReferenceInfo,
) -> dict[str, Any]:
    prompt_tokens = sum(map(len, scores))
    new_tokens = sum(len(new_ids(s)) for s in scores)
    return {
        "id": name,
        "object": "text_completion",
        "created": int(time.time()),
        "model": info.model,
        "system_fingerprint": info.fingerprint,
        "choices": [_choice(i, asked, *each, strings) for i, each in enumerate(zip(scores, shown, strict=True))],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": prompt_tokens + new_tokens,
        },
    }


def _choice(
    index: int, asked: CompletionRequest, scores: SequenceScores, shown: Shown, strings: Mapping[int, str | None]
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "text": shown.text,
        "finish_reason": "length",
        "logprobs": None if asked.logprobs is None else shown.logprobs(scores),
    }
    if asked.prompt_logprobs is not None:
        choice["prompt_logprobs"] = prompt_logprobs(_best(scores, asked.prompt_logprobs), strings)
    if asked.return_token_ids:
        choice |= {"prompt_token_ids": scores.ids.tolist(), "token_ids": new_ids(scores)}
    return choice


def _best(scores: SequenceScores, k: int) -> SequenceScores:
    return replace(scores, top_ids=scores.top_ids[:, :k], top_logprobs=scores.top_logprobs[:, :k])
