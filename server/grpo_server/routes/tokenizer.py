"""Text to ids and back with the reference's own tokenizer, in the words of vLLM's routes of these names."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from grpo_client.protocol import ReferenceInfo
from pydantic import BaseModel, ConfigDict, Field, model_validator

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to, identity_headers
from grpo_server.routes._refusals import check_model
from grpo_server.routes._sampling import Flag, changes_nothing, null_means
from grpo_server.schemas import ChatMessageIn
from grpo_server.scoring import Scoring
from grpo_server.service import Service
from grpo_server.text import Tokenizer, encode, encode_chat, no_tokenizer

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
    tokens: list[int]


class DetokenizeResponse(BaseModel):
    prompt: str


@router.post("/tokenize")
async def tokenize(
    asked: TokenizeRequest, request: Request, response: Response, service: ServiceDep, scoring: ScoringDep
) -> TokenizeResponse:
    """The ids of a string or of a conversation."""
    asked.check()
    tokenizer, info = _hosted(service, scoring, asked.model, response)

    def work() -> TokenizeResponse:
        if asked.messages is None:
            assert asked.prompt is not None
            special = asked.add_special_tokens is not False
            ids = encode(tokenizer, asked.prompt, add_special_tokens=special, param="prompt").tolist()
        else:
            messages = [m.model_dump() for m in asked.messages]
            ids = encode_chat(
                tokenizer, messages, add_generation_prompt=asked.add_generation_prompt, param="messages"
            ).tolist()
        strings = tokenizer.convert_ids_to_tokens(ids) if asked.return_token_strs else None
        return TokenizeResponse(count=len(ids), max_model_len=info.max_length, tokens=ids, token_strs=strings)

    return await answer_to(request, service.in_prepare(work))


@router.post("/detokenize")
async def detokenize(
    asked: DetokenizeRequest, request: Request, response: Response, service: ServiceDep, scoring: ScoringDep
) -> DetokenizeResponse:
    """The text of ids, special tokens included."""
    tokenizer, info = _hosted(service, scoring, asked.model, response)
    for i, token in enumerate(asked.tokens):
        if not 0 <= token < info.vocab_size:
            raise ServiceError(
                ErrorCode.INVALID_VALUE,
                f"tokens[{i}] is {token}; the vocabulary has {info.vocab_size} ids, 0 to {info.vocab_size - 1}",
                param=f"tokens[{i}]",
            )
    text = await answer_to(request, service.in_prepare(tokenizer.decode, asked.tokens, skip_special_tokens=False))
    return DetokenizeResponse(prompt=text)


@router.get("/tokenizer_info")
async def tokenizer_info(response: Response, service: ServiceDep, scoring: ScoringDep) -> dict[str, Any]:
    """Class, special tokens and chat template: what evaluation harnesses ask for before they tokenize themselves."""
    tokenizer, info = _hosted(service, scoring, None, response)
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


def _hosted(
    service: Service, scoring: Scoring, model: str | None, response: Response
) -> tuple[Tokenizer, ReferenceInfo]:
    """The tokenizer that answers and whose it is, which the response is told as well. model: the name that was given."""
    service.scheduler.door.refuse_if_closed()
    hosted = scoring.hosted
    check_model(model, hosted.info)
    if hosted.tokenizer is None:
        raise no_tokenizer()
    response.headers.update(identity_headers(hosted.info))
    return hosted.tokenizer, hosted.info
