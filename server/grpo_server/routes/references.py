"""Loading a further reference while others serve, and dropping one. Needs the admin key, as /admin does."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Request, Response
from grpo_client.protocol import ROUTE_REFERENCES, ReferenceInfo
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.naming import LONGEST_NAME, NAME
from grpo_server.routes._bodies import described, read_json
from grpo_server.routes._common import ServiceDep
from grpo_server.swapping.progress import SwapStatus
from grpo_server.swapping.wish import Wish

router = APIRouter(prefix=ROUTE_REFERENCES, tags=["admin"])


def _name(text: str) -> str:
    if len(text) > LONGEST_NAME or not re.fullmatch(NAME, text):
        raise PydanticCustomError(
            "name",
            "{text} is no name; give letters, digits, '.', '_' and '-', beginning with a letter or digit, {most} at most",
            {"text": repr(text[:LONGEST_NAME]), "most": LONGEST_NAME},
        )
    return text


Name = Annotated[
    str,
    AfterValidator(_name),
    Field(
        json_schema_extra={"pattern": f"^{NAME}$", "maxLength": LONGEST_NAME}, description="What clients will call it."
    ),
]


class LoadRequest(BaseModel):
    """Host one more."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    source: str = Field(
        min_length=1, description="Directory, .gguf file, hub id, upload, or demo; an adapter's directory."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    base: str | None = Field(
        None, description="For an adapter: the name of the reference that it is laid on. Without it, a model by itself."
    )
    wait: bool = Field(True, description="false: answer 202 at once; /v1/reference says how far it is.")


class Dropped(BaseModel):
    """name: of what was let go of."""

    name: str


@router.post("", openapi_extra=described(LoadRequest), response_model=ReferenceInfo | SwapStatus)
async def load(request: Request, response: Response, service: ServiceDep) -> ReferenceInfo | SwapStatus:
    """Load a further reference beside those that serve. If it cannot be loaded (422) or not in time (504), they serve on.
    DELETE /admin/reference ends it."""
    asked = await read_json(request, service, LoadRequest)
    _check_alone(service)
    wish = Wish(asked.source, asked.revision, reference=asked.name, base=asked.base, new=True)
    task = service.swaps.begin(wish)
    if asked.wait:
        return await asyncio.shield(task)
    response.status_code = HTTPStatus.ACCEPTED
    status = service.swaps.status
    assert status is not None
    return status


@router.delete("/{name:path}")
async def drop(name: str, service: ServiceDep) -> Dropped:
    """Let go of a reference, once it has answered what it accepted; the one that answers who names none stays."""
    _check_alone(service)
    await asyncio.shield(asyncio.create_task(service.swaps.drop(name), name=f"drop {name}"))
    return Dropped(name=name)


def _check_alone(service: Service) -> None:
    """Raises ServiceError (422) on a replica, which hosts what all host."""
    if service.together is not None:
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            "the replicas of a cluster host one reference; start a server of its own for another",
        )
