"""What routes share: how they get at the service, read a body and wait for a score."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import Depends, Request
from grpo_client.protocol import HIDDEN, MEDIA_TENSORS, ReferenceInfo
from grpo_client.text import AnyRequest
from pydantic import BaseModel

from grpo_server.disconnect import while_connected
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.scoring import Scoring

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


# async, although they wait for nothing: the framework runs a plain function on a thread, which costs more than a refusal
async def get_service(request: Request) -> Service:
    return request.app.state.service


async def get_scoring(request: Request) -> Scoring:
    return request.app.state.scoring


ServiceDep = Annotated[Service, Depends(get_service)]
ScoringDep = Annotated[Scoring, Depends(get_scoring)]


def identity_headers(info: ReferenceInfo) -> dict[str, str]:
    """Who computed an answer, whatever the dialect has a place for. The name is percent-encoded where a header must be."""
    return {
        "X-Reference-Model": quote(info.model, safe="!#$&'()*+,/:;=?@[]~ "),
        "X-Reference-Fingerprint": info.fingerprint,
        "X-Reference-Version": str(info.version),
    }


def check_not_hidden(request: AnyRequest) -> None:
    """Raises ServiceError for hidden states, of an answer that has no bfloat16."""
    if HIDDEN in request.extras:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            f"return asks for hidden, which comes from POST /v1/logprobs as tensors only; send Accept: {MEDIA_TENSORS}",
            param="return",
        )


async def answer_to(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What work returns, cancelled if this request's client leaves. The body must have been read."""
    return await while_connected(request.receive, work)


async def aside(service: Service, large: bool, work: Callable[[], T]) -> T:
    """What work returns; when there is much of it, done beside the event loop."""
    return await service.in_codec(work) if large else work()
