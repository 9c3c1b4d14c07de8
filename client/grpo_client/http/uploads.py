"""The calls that bring a model to a server, piece by piece, and what it says of how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from grpo_client.errors import InvalidResponse
from grpo_client.http.exchange import Call, Reply, raise_for_status
from grpo_client.protocol import MEDIA_JSON

Place = TypeVar("Place", bound=BaseModel)

ROUTE_UPLOADS = "/admin/uploads"


class FilePlace(BaseModel):
    """Where a file goes on at the server; complete: it has all bytes, and their hash is right."""

    name: str
    offset: int
    complete: bool


class UploadPlace(BaseModel):
    """id: of the upload. model: what a server can be told to host once all files are complete."""

    id: str
    model: str
    files: list[FilePlace]


def begin_call(files: Sequence[dict[str, Any]], admin_key: str | None) -> Call:
    """The call that begins an upload, or finds it again. files: name, size and sha256 of each."""
    headers = {"Content-Type": MEDIA_JSON, **_key(admin_key)}
    return Call("POST", ROUTE_UPLOADS, headers, to_json({"files": list(files)}))


def piece_call(id: str, name: str, offset: int, data: bytes, admin_key: str | None) -> Call:
    """The call that brings the bytes of a file from offset on."""
    headers = {"Content-Type": "application/octet-stream", "Upload-Offset": str(offset), **_key(admin_key)}
    return Call("PUT", f"{ROUTE_UPLOADS}/{quote(id, safe='')}/{quote(name, safe='')}", headers, data)


def read_upload(reply: Reply) -> UploadPlace:
    """How far an upload is. Raises APIError's kin and InvalidResponse."""
    return _read(reply, UploadPlace)


def read_piece(reply: Reply) -> FilePlace:
    """How far a file is. Raises APIError's kin and InvalidResponse."""
    return _read(reply, FilePlace)


def _read(reply: Reply, kind: type[Place]) -> Place:
    raise_for_status(reply)
    try:
        return kind.model_validate_json(reply.body)
    except ValidationError as error:
        raise InvalidResponse(f"{reply.url} did not say how far the upload is", request_id=reply.named_id) from error


def _key(admin_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
