"""A model that is brought over HTTP, in pieces: begun, gone on with after a cut, hashed, and then hosted as `upload:ID` by the
routes of `admin`. Needs the admin key; `auth` sees to that."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from grpo_client.content_digest import HEADER
from starlette._utils import get_route_path
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._bodies import described, read_json
from grpo_server.routes._common import ServiceDep
from grpo_server.scheduler.door import draining
from grpo_server.uploading.manifest import FileStatus, Manifest, UploadStatus
from grpo_server.uploading.receiving import Receiving

PREFIX = "/admin/uploads"
router = APIRouter(prefix=PREFIX, tags=["admin"])

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


def is_streamed(scope: Scope) -> bool:
    """Whether the body goes to disk as it comes, so that no limit of what may be in memory is meant for it."""
    return scope["method"] == "PUT" and get_route_path(scope).startswith(f"{PREFIX}/")


async def _uploads(service: ServiceDep) -> Receiving:
    if service.uploads is None:
        raise ServiceError(ErrorCode.NOT_FOUND, "this server takes no uploads; start it with --upload-dir")
    if service.door.draining:
        raise draining("the server is shutting down and takes no uploads")
    return service.uploads


UploadsDep = Annotated[Receiving, Depends(_uploads)]


@router.post("", openapi_extra=described(Manifest), status_code=HTTPStatus.CREATED)
async def begin(request: Request, response: Response, service: ServiceDep, uploads: UploadsDep) -> UploadStatus:
    """Begin an upload, or find the one of the same files (200) and go on with it: `files` says where each goes on."""
    upload, new = await uploads.create(await read_json(request, service, Manifest))
    response.status_code = HTTPStatus.CREATED if new else HTTPStatus.OK
    response.headers["Location"] = f"{PREFIX}/{upload.id}"
    return upload.status()


@router.get("")
async def uploads_here(uploads: UploadsDep) -> list[UploadStatus]:
    """Every upload that is here, and how far it is."""
    return [upload.status() for upload in uploads.area.all()]


@router.get("/{id}")
async def how_far(id: str, uploads: UploadsDep) -> UploadStatus:
    """How far an upload is: where each of its files goes on."""
    return uploads.area.find(id).status()


@router.delete("/{id}", status_code=HTTPStatus.NO_CONTENT)
async def drop(id: str, uploads: UploadsDep) -> None:
    """Remove an upload. 409 while a swap reads it or bytes arrive for it; a reference that came from it serves on."""
    uploads.area.remove(id)


@router.put(
    "/{id}/{file}",
    openapi_extra={
        "requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": description,
            }
            for name, description in (
                ("Content-Range", "bytes FIRST-LAST/SIZE: where the piece begins and ends."),
                ("Upload-Offset", "Where the piece begins, in its place; 0 by default."),
            )
        ],
    },
)
async def append(id: str, file: str, request: Request, response: Response, uploads: UploadsDep) -> FileStatus:
    """Send a piece of a file, of any length, beginning where the file ends; 409 says where that is, in `Upload-Offset`. With
    its last byte the file is hashed: 422 if it is not what the manifest says, and it is removed."""
    upload = uploads.area.find(id)
    size = upload.manifest.entry(file).size
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ServiceError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE, "send the bytes of the file as they are", param="Content-Encoding"
        )
    offset, length = _place(request, size)
    digest = request.headers.get(HEADER)
    status = await uploads.append(upload, file, offset, length, _pieces(request), digest)
    response.headers["Upload-Offset"] = str(status.offset)
    response.headers["Upload-Complete"] = "?1" if status.complete else "?0"
    return status


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as error:
        raise ServiceError(
            ErrorCode.CLIENT_LEFT, "the client closed the connection before its piece was whole"
        ) from error


def _place(request: Request, size: int) -> tuple[int, int | None]:
    """Where a piece begins, and how long it is if that is said. Raises ServiceError (400) for headers that say neither or two
    things."""
    headers = request.headers
    announced = int(headers["content-length"]) if _NUMBER.fullmatch(headers.get("content-length", "")) else None
    given, said = headers.get("upload-offset"), headers.get("content-range")
    if given is not None and _NUMBER.fullmatch(given) is None:
        raise _unclear("Upload-Offset", "it is the number of bytes that are there already")
    if said is None:
        return int(given or 0), announced
    parts = _RANGE.fullmatch(said)
    if parts is None:
        raise _unclear("Content-Range", "it reads bytes FIRST-LAST/SIZE")
    first, last = int(parts[1]), int(parts[2])
    if last < first or parts[3] not in ("*", str(size)):
        raise _unclear("Content-Range", f"FIRST is not behind LAST, and SIZE is the {size} of the manifest")
    if announced not in (None, last - first + 1) or given not in (None, str(first)):
        raise _unclear("Content-Range", "Content-Length or Upload-Offset says another thing")
    return first, last - first + 1


def _unclear(header: str, why: str) -> ServiceError:
    return ServiceError(ErrorCode.MALFORMED, f"{header} cannot be followed: {why}", param=header)
