"""Pydantic models that describe the API to people and tools (/docs, /openapi.json); the wire modules do the real parsing."""

from __future__ import annotations

from typing import Any, Literal

from grpo_client.protocol import ReferenceInfo, Usage
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema


class ErrorDetail(BaseModel):
    message: str = Field(description="What is wrong and what to do about it.")
    type: str
    param: str | None = Field(description="The field at fault, as a path: groups[0].completions[2].")
    code: str | None = Field(description="One short word for programs.")


class ErrorResponse(BaseModel):
    """How every route reports every error."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "Refused: the message says what to do."},
    "5XX": {"model": ErrorResponse, "description": "503 loading, swapping or draining, with Retry-After; 500 a bug."},
}


class OpenInferenceError(ErrorDetail):
    """The same where the protocol has a string: under /v2."""

    error: str = Field(description="The message once more.")


OPEN_INFERENCE_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**response, "model": OpenInferenceError} for status, response in ERROR_RESPONSES.items()
}


class ChatMessageIn(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: Any


class _GroupIn(BaseModel):
    model_config = ConfigDict(extra="forbid")


class IdGroupIn(_GroupIn):
    prompt: list[int] = Field(min_length=1, description="Token ids.")
    completions: list[list[int]] = Field(min_length=1, description="Token ids of each completion; one may be empty.")


class TextGroupIn(_GroupIn):
    prompt: str = Field(description="Text, tokenized as the model's tokenizer does by default.")
    completions: list[str] = Field(min_length=1, description="Text, tokenized without special tokens.")


class ChatGroupIn(_GroupIn):
    messages: list[ChatMessageIn] = Field(min_length=1, description="Goes through the model's chat template.")
    completions: list[str] = Field(min_length=1)


class LogprobsRequest(BaseModel):
    """One request: groups of one prompt and its completions, all as ids or all as text."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"groups": [{"prompt": [1, 2, 3], "completions": [[4, 5, 2], [6, 2]]}], "temperature": 1.0},
                {
                    "groups": [{"prompt": "The sky is", "completions": [" blue", " green"]}],
                    "return": ["entropy", "rank"],
                    "top_k": 2,
                },
                {"groups": [{"messages": [{"role": "user", "content": "2 + 2?"}], "completions": ["4"]}]},
            ]
        },
    )

    groups: list[IdGroupIn] | list[TextGroupIn | ChatGroupIn] = Field(min_length=1)
    temperature: float | list[float] = Field(1.0, description="Above 0. One, or one per group.")
    normalizer: Literal["softmax", "stablemax"] = "softmax"
    return_: list[Literal["entropy", "logsumexp", "rank", "tail", "hidden"]] = Field(
        [],
        alias="return",
        description="Figures to return for every completion token beside its log-prob. tail: the log of the mass outside "
        "top_ids, as top_tail, and outside the distinct token_ids, as token_tail. hidden: hidden states, "
        "(N, H) bfloat16, as tensors only and where the server allows it.",
    )
    top_k: int = Field(0, ge=0, description="Best tokens to return at each position.")
    token_ids: list[list[list[list[int]]]] | None = Field(
        None,
        description="[group][completion][position][id]: ids to score as well, equally many at every position; -1 is none.",
    )
    completion_mask: list[list[list[int]]] | None = Field(
        None,
        description="[group][completion][position]: 1 where a token is asked, 0 where it is context alone (a tool's output).",
    )
    top_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="Of top_logprobs and token_logprobs. With float16 the tensor top_ids is uint16 where the vocabulary has at "
        "most 65,536 ids.",
    )
    fingerprint: str | None = Field(None, description="Answer only if this is the reference; else 409.")


class GroupOut(BaseModel):
    """Per completion, per token. null where a log-prob is not finite, and then the status says nonfinite; where it is ok, null
    among top_logprobs, token_logprobs and tails is minus infinity."""

    logprobs: list[list[float | None]] = Field(
        description="logprobs[g][t] = log p(completion[t] | prompt, completion[:t])."
    )
    status: list[Literal["ok", "nonfinite"]]
    entropy: list[list[float | None]] | None = None
    logsumexp: list[list[float | None]] | None = None
    rank: list[list[int]] | None = None
    top_ids: list[list[list[int]]] | None = None
    top_logprobs: list[list[list[float | None]]] | None = None
    token_logprobs: list[list[list[float | None]]] | None = None
    top_tail: list[list[float | None]] | None = Field(None, description="Log of the mass outside top_ids.")
    token_tail: list[list[float | None]] | None = Field(
        None, description="Log of the mass outside the distinct token_ids."
    )
    completion_mask: list[list[int]] | None = Field(
        None,
        description="As it was sent: log-probs are null where it is 0, and the other figures have the other tokens alone.",
    )
    prompt: list[int] | None = Field(None, description="The ids that were scored, for a text request.")
    completions: list[list[int]] | None = Field(None, description="The ids that were scored, for a text request.")


class LogprobsResponse(BaseModel):
    reference: ReferenceInfo
    temperature: float | list[float]
    top_dtype: Literal["float16"] | None = Field(None, description="Where float16 was asked for.")
    groups: list[GroupOut]
    usage: Usage


def request_schemas() -> dict[str, Any]:
    """Components that FastAPI cannot find by itself, because the routes that take them parse their own bodies."""
    _, definitions = models_json_schema([(LogprobsRequest, "validation")], ref_template="#/components/schemas/{model}")
    return definitions["$defs"]
