"""POST /v1/completions as OpenAI and vLLM have it, for those who send it to score a prompt.

`echo` with `logprobs`: lm-evaluation-harness, openai-python, PipelineRL. `prompt_logprobs`: TRL, verl. Both at once if
asked. max_tokens=1 is answered with the likeliest next token, which a scoring pass knows anyway; more is generation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from grpo_client.protocol import ReferenceInfo
from pydantic import Field

from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.logs import request_id
from grpo_server.routes._bodies import Ids, Prompt, described, form_of, id_array, json_response, read_json
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to, aside
from grpo_server.routes.dialects._echo import Show, Shown, new_ids
from grpo_server.routes.dialects._prompt_logprobs import best_of, prompt_logprobs
from grpo_server.routes.dialects._refusals import check_new_tokens, generation, scoring_temperature
from grpo_server.routes.dialects._sampling import Best, Flag, Sampling, best_count, null_means
from grpo_server.routes.dialects._sequence_checks import Names
from grpo_server.routes.dialects._sequence_values import ScoredSequence, SequenceScores
from grpo_server.routes.dialects._sequences import are_many, score_sequences
from grpo_server.routes.dialects._strings import encode_texts, token_strings, wants_text
from grpo_server.text.requests import Tokenizer

router = APIRouter(tags=["OpenAI and vLLM"])

DEFAULT_MAX_TOKENS = 16  # what OpenAI and vLLM generate when max_tokens is left out


class NewTokens(Sampling):
    """Sampling parameters as SGLang's and vLLM's own routes nest them."""

    max_tokens: int | None = None
    max_new_tokens: int | None = None


class CompletionRequest(Sampling):
    """What only shapes generated text (stop, seed, ignore_eos ...) is ignored: nothing is generated."""

    unable = ("suffix", "truncate_prompt_tokens")

    model: str | None = None
    prompt: Prompt
    max_tokens: int | None = Field(None, description="0, or 1 for the likeliest next token as well.")
    max_new_tokens: int | None = Field(None, description="The same, as SGLang calls it.")
    sampling_params: NewTokens | None = Field(None, description="max_tokens, for those who nest it.")
    echo: Flag = Field(False, description="Report the tokens of the prompt.")
    logprobs: Best = Field(
        None, description="So many best tokens a position, beside the one that is there; -1: the whole vocabulary."
    )
    prompt_logprobs: Best = Field(None, description="The same in vLLM's form, by token id.")
    logprob_token_ids: Ids | None = Field(
        None, description="Ids to score after the prompt, in place of the best; needs logprobs and max_tokens=1."
    )
    detokenize: bool | None = Field(
        None, description="Give the text of each id in prompt_logprobs; unasked for up to 20 best tokens."
    )
    return_token_ids: Flag = False
    return_tokens_as_token_ids: Flag = False
    add_special_tokens: Annotated[bool, null_means(True)] = Field(True, description="For text prompts.")

    suffix: str | None = Field(None, description="null")
    top_logprobs: int | None = Field(None, description="null, or the same as logprobs or prompt_logprobs.")
    truncate_prompt_tokens: int | None = Field(None, description="null: prompts are scored whole.")

    def check(self) -> bool:
        """True if the next token is wanted. Raises ServiceError (422) for what asks for generation, or for nothing."""
        self.refuse_shaping()
        if self.top_logprobs is not None and self.top_logprobs not in (self.logprobs, self.prompt_logprobs):
            raise generation("top_logprobs is set", "top_logprobs", "send logprobs=k or prompt_logprobs=k")
        wants_next = check_new_tokens(self._new_tokens(), "max_tokens", DEFAULT_MAX_TOKENS)
        if not (wants_next or self.echo or self.prompt_logprobs is not None):
            raise _wrong("echo", "nothing is asked: send echo=true with logprobs=k, or prompt_logprobs=k")
        if self.logprob_token_ids is not None and (self.logprobs is None or not wants_next):
            raise _wrong(
                "logprob_token_ids", "logprob_token_ids are scored after the prompt: send logprobs, max_tokens=1"
            )
        return wants_next

    def _new_tokens(self) -> int | None:
        """How many, by whichever name. Raises ServiceError (422) where names differ, and for nested parameters that shape."""
        given = {"max_tokens": self.max_tokens, "max_new_tokens": self.max_new_tokens}
        if (nested := self.sampling_params) is not None:
            nested.refuse_shaping("sampling_params.")
            if nested.temperature is not None and nested.temperature != self.temperature:
                raise _wrong(
                    "sampling_params.temperature", "sampling_params.temperature: send temperature beside prompt"
                )
            given["sampling_params.max_tokens"] = nested.max_tokens
            given["sampling_params.max_new_tokens"] = nested.max_new_tokens
        said = {name: value for name, value in given.items() if value is not None}
        if len(set(said.values())) > 1:
            name = list(said)[-1]
            raise _wrong(name, f"{' and '.join(said)} differ; send one of them")
        return next(iter(said.values()), None)


def _wrong(param: str, message: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_VALUE, message, param=param)


@router.post("/v1/completions", response_class=Response, openapi_extra=described(CompletionRequest))
async def completions(request: Request, scoring: ScoringDep, service: ServiceDep) -> Response:
    """Log-probs of the prompts' own tokens: `echo` and `logprobs` as OpenAI has it, or `prompt_logprobs` as vLLM has it."""
    asked = await read_json(request, service, CompletionRequest)
    wants_next = asked.check()
    temperature = scoring_temperature(asked.temperature)

    async def answer(hosted: Hosted) -> Response:
        info, tokenizer = hosted.info, hosted.tokenizer
        best = best_count(asked.logprobs, "logprobs", info, service.config)
        prompt_best = best_count(asked.prompt_logprobs, "prompt_logprobs", info, service.config)
        next_ids = None if asked.logprob_token_ids is None else id_array(asked.logprob_token_ids)
        ids = await _ids(service, hosted, asked)
        much = are_many(ids)
        sequences = await aside(
            service, much, lambda: [ScoredSequence(s, temperature=temperature, next_ids=next_ids) for s in ids]
        )
        scores = await score_sequences(
            service,
            scoring,
            hosted,
            sequences,
            Names(token_ids="logprob_token_ids"),
            top_k=max(best, prompt_best),
            extras=["rank"] if asked.prompt_logprobs is not None else [],
            next_token=wants_next,
        )
        if wants_next and (asked.echo or next_ids is not None):
            _check_room(scores, info.max_length)
        by_id: list[SequenceScores] = []
        if asked.prompt_logprobs is not None:
            by_id = await aside(service, much, lambda: [best_of(s, prompt_best) for s in scores])
        strings = await token_strings(service, hosted, by_id if wants_text(asked.detokenize, prompt_best) else ())
        shown = await service.in_tokenizer(_shown, tokenizer, asked, best, scores)
        name = f"cmpl-{request_id.get()}"

        def body() -> dict[str, Any]:
            def choices() -> Iterator[dict[str, Any]]:
                for i, each in enumerate(zip(scores, shown, strict=True)):
                    choice = {"index": i, **_choice(asked, *each)}
                    if by_id:
                        choice["prompt_logprobs"] = prompt_logprobs(by_id[i], strings)
                    yield choice

            return _body(name, info, choices(), scores)

        return await json_response(request, service, info, body)

    return await answer_to(request, scoring.by_one_reference(answer, asked.model))


@router.post("/v1/chat/completions", include_in_schema=False)
async def chat() -> None:
    raise generation("/v1/chat/completions generates", "messages", "score messages with POST /v1/logprobs")


async def _ids(service: Service, hosted: Hosted, asked: CompletionRequest) -> list[Any]:
    form = form_of(asked.prompt)
    if form == "ids":
        return [id_array(asked.prompt)]  # pyright: ignore[reportArgumentType]
    if form == "sequences":
        return [id_array(s) for s in asked.prompt]  # pyright: ignore[reportArgumentType]
    texts: Any = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    return await encode_texts(service, hosted, texts, "prompt[{}]", add_special_tokens=asked.add_special_tokens)


def _shown(
    tokenizer: Tokenizer | None, asked: CompletionRequest, best: int, scores: Sequence[SequenceScores]
) -> list[Shown]:
    prompts = {"text": [asked.prompt], "texts": asked.prompt}.get(form_of(asked.prompt), [None] * len(scores))
    show = Show(
        tokenizer,
        echo=asked.echo,
        best=best,
        next_ids=[] if asked.logprob_token_ids is None else id_array(asked.logprob_token_ids).tolist(),
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
    name: str, info: ReferenceInfo, choices: Iterator[dict[str, Any]], scores: Sequence[SequenceScores]
) -> dict[str, Any]:
    prompt_tokens = sum(map(len, scores))
    new_tokens = sum(len(new_ids(s)) for s in scores)
    return {
        "id": name,
        "object": "text_completion",
        "created": int(time.time()),
        "model": info.model,
        "system_fingerprint": info.fingerprint,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": prompt_tokens + new_tokens,
        },
    }


def _choice(asked: CompletionRequest, scores: SequenceScores, shown: Shown) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "text": shown.text,
        "finish_reason": "length",
        "logprobs": None if asked.logprobs is None else shown.logprobs(scores),
    }
    if asked.return_token_ids:
        choice |= {"prompt_token_ids": scores.ids.tolist(), "token_ids": new_ids(scores)}
    return choice
