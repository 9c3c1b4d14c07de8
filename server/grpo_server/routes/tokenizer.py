"""Text to ids and back with the reference's own tokenizer, in the words of vLLM's routes of these names."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from grpo_client.protocol import ReferenceInfo
from pydantic import BaseModel, ConfigDict, Field, model_validator

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.routes._bodies import Ids, described, id_array, json_response, read_json
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to, identity_headers
from grpo_server.routes.dialects._sampling import Flag, changes_nothing, null_means
from grpo_server.schemas import ChatMessageIn
from grpo_server.scoring import Scoring
from grpo_server.text.requests import Tokenizer, encode, no_tokenizer, render_chat
from grpo_server.text.tokenizing import check_characters

router = APIRouter(tags=["tokenizer"])


UNABLE = (
    "truncate_prompt_tokens",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "tools",
    "documents",
)


class TokenizeRequest(BaseModel):
    """Either a string or chat messages. Other fields that clients of vLLM send are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessageIn] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = Field(None, description="For a string, true; a chat template brings its own.")
    add_generation_prompt: Annotated[bool, null_means(True)] = Field(True, description="For messages.")
    return_token_strs: Flag = False

    # They would change the ids: null, or it is refused.
    truncate_prompt_tokens: Any = Field(None, description="null")
    continue_final_message: Any = Field(None, description="false")
    chat_template: Any = Field(None, description="null: the model's own.")
    chat_template_kwargs: Any = Field(None, description="null")
    tools: Any = Field(None, description="null")
    documents: Any = Field(None, description="null")

    @model_validator(mode="after")
    def _one_of(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self

    def check(self) -> None:
        """Raises ServiceError (422) for what would give other ids."""
        for name in UNABLE:
            if not changes_nothing(name, value := getattr(self, name)):
                raise _not_done(f"{name} is {value!r:.60}, and is not done here; leave it out", name)
        if self.messages is not None and self.add_special_tokens:
            raise _not_done(
                "add_special_tokens is true; a chat template brings its own special tokens, leave it out",
                "add_special_tokens",
            )


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    tokens: Ids


class DetokenizeResponse(BaseModel):
    prompt: str


@router.post("/tokenize", response_model=TokenizeResponse, openapi_extra=described(TokenizeRequest))
async def tokenize(request: Request, service: ServiceDep, scoring: ScoringDep) -> Response:
    """The ids of a string or of a conversation."""
    asked = await read_json(request, service, TokenizeRequest)
    asked.check()
    tokenizer, info = _hosted(service, scoring, asked.model)

    def ids() -> list[int]:
        text, name, special = asked.prompt, "prompt", asked.add_special_tokens is not False
        if asked.messages is not None:
            messages = [m.model_dump() for m in asked.messages]
            name, special = "messages", False
            text = render_chat(tokenizer, messages, add_generation_prompt=asked.add_generation_prompt, param=name)
        assert text is not None
        check_characters(text, name, info.max_length)
        return encode(tokenizer, text, add_special_tokens=special, param=name).tolist()

    async def answer() -> Response:
        tokens = await service.in_tokenizer(ids)
        strings = None
        if asked.return_token_strs:
            strings = await service.in_tokenizer(tokenizer.convert_ids_to_tokens, tokens)
        body = {"count": len(tokens), "max_model_len": info.max_length, "tokens": tokens, "token_strs": strings}
        return await json_response(request, service, info, lambda: body)

    return await answer_to(request, answer())


@router.post("/detokenize", response_model=DetokenizeResponse, openapi_extra=described(DetokenizeRequest))
async def detokenize(request: Request, service: ServiceDep, scoring: ScoringDep) -> Response:
    """The text of ids, special tokens included."""
    asked = await read_json(request, service, DetokenizeRequest)
    tokenizer, info = _hosted(service, scoring, asked.model)
    tokens = id_array(asked.tokens)
    if len(tokens) > (most := service.config.max_queue_tokens):
        raise ServiceError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"tokens has {len(tokens)} ids; the limit is {most}; send fewer at once",
            param="tokens",
        )
    if (wrong := np.flatnonzero(tokens >= info.vocab_size)).size:
        i = int(wrong[0])
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"tokens[{i}] is {tokens[i]}; the vocabulary has {info.vocab_size} ids, 0 to {info.vocab_size - 1}",
            param=f"tokens[{i}]",
        )

    async def answer() -> Response:
        text = await service.in_tokenizer(tokenizer.decode, tokens.tolist(), skip_special_tokens=False)
        return await json_response(request, service, info, lambda: {"prompt": text})

    return await answer_to(request, answer())


@router.get("/tokenizer_info")
async def tokenizer_info(response: Response, service: ServiceDep, scoring: ScoringDep) -> dict[str, Any]:
    """Class, special tokens and chat template: what evaluation harnesses ask for before they tokenize themselves."""
    tokenizer, info = _hosted(service, scoring, None)
    response.headers.update(identity_headers(info))
    special = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "model_max_length": info.max_length,
        "vocab_size": info.vocab_size,
        "chat_template": getattr(tokenizer, "chat_template", None),
        **{name: getattr(tokenizer, name, None) for name in special},
    }


def _not_done(message: str, param: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_VALUE, message, param=param)


def _hosted(service: Service, scoring: Scoring, model: str | None) -> tuple[Tokenizer, ReferenceInfo]:
    """The tokenizer that answers to this name, and whose it is."""
    service.scheduler.door.refuse_if_closed()
    hosted = scoring.hosted(model)
    if hosted.tokenizer is None:
        raise no_tokenizer()
    return hosted.tokenizer, hosted.info
