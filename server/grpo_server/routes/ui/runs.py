"""GET /ui/api/runs: the runs of the directory that --runs names, their files by whole lines, and what is wrong with them.

A page follows a file that grows by asking for what comes after the last byte it has. Without --runs there is nothing to see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Response

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._common import ServiceDep
from grpo_server.routes.ui._run_files import NoSuchFile, NotReadableSo, Piece, RunFiles
from grpo_server.routes.ui._run_findings import findings_of
from grpo_server.routes.ui.guard import api_router

router = api_router()
T = TypeVar("T")


async def _run_files(service: ServiceDep) -> RunFiles:
    """Raises ServiceError (404) where no directory was named."""
    if service.config.runs is None:
        raise ServiceError(
            ErrorCode.NOT_FOUND, "this server was given no runs to show; start it with --runs and their directory"
        )
    return RunFiles(service.config.runs)


RunFilesDep = Annotated[RunFiles, Depends(_run_files)]


@router.get("/runs")
async def runs(service: ServiceDep) -> dict[str, Any]:
    """Every run, the one that was written to last first, with its files and their sizes. `shown` is false where the server was
    given no directory of runs."""
    if service.config.runs is None:  # no refusal: each page asks what there is, and a browser logs a 404
        return {"shown": False, "runs": []}
    files = RunFiles(service.config.runs)
    return {"shown": True, "runs": await _read(service, files.runs)}


@router.get("/runs/{run}/findings")
async def findings(service: ServiceDep, files: RunFilesDep, run: str) -> dict[str, Any]:
    """What the rules of `grpo-client check` say of a run. Of a long one they read the beginning and the end of its samples."""
    return await _read(service, lambda: findings_of(files, run))


@router.get(
    "/runs/{run}/{file}",
    response_class=Response,
    responses={200: {"content": {"application/x-ndjson": {}, "application/json": {}}}},
)
async def file(
    service: ServiceDep,
    files: RunFilesDep,
    run: str,
    file: str,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Bytes that are known already.")] = 0,
    step: Annotated[int | None, Query(ge=0, lt=2**63, description="Only the lines of this step.")] = None,
) -> Response:
    """Whole lines of a file, up to 2 MiB of them. X-Next-Byte is what to ask for next, X-File-Size where the file ends now, and
    X-File-Id changes when it is written anew, as by a run that is resumed: then begin again at 0."""
    if not file.endswith(".jsonl"):
        piece = await _read(service, lambda: files.whole(run, file))
    elif step is not None:
        piece = await _read(service, lambda: files.step(run, file, step))
    else:
        piece = await _read(service, lambda: files.after(run, file, after))
    return _response(file, piece)


async def _read(service: ServiceDep, work: Callable[[], T]) -> T:
    """What work returns, beside the event loop: a disk may be slow. Raises ServiceError (404, 422)."""
    try:
        return await service.in_codec(work)
    except NoSuchFile as error:
        raise ServiceError(
            ErrorCode.NOT_FOUND, f"there is no {error} among the runs; /ui/api/runs lists them"
        ) from None
    except NotReadableSo as error:
        raise ServiceError(ErrorCode.INVALID_VALUE, f"{error.param} {error}", param=error.param) from None
    except OSError as error:
        raise ServiceError(ErrorCode.NOT_FOUND, f"the runs cannot be read: {error.strerror}") from None


def _response(file: str, piece: Piece) -> Response:
    headers = {
        "X-Next-Byte": str(piece.next),
        "X-File-Size": str(piece.size),
        "X-File-Id": piece.file,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    lines = file.endswith(".jsonl")
    return Response(piece.content, media_type="application/x-ndjson" if lines else "application/json", headers=headers)
