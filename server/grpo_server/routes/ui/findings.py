"""POST /ui/api/findings: what the rules of `grpo-client check` say of sample records, asking the reference again if told to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import JSONResponse
from grpo_client.errors import RequestRefused
from grpo_client.findings import Samples, SamplesError, check, samples_of
from grpo_client.findings.rescoring import Served
from pydantic_core import from_json

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to
from grpo_server.routes.ui._served import ServedHere
from grpo_server.routes.ui.guard import api_router

router = api_router()

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/x-ndjson": {"schema": {"type": "string", "description": "One group a line."}}},
    }
}


@router.post("/findings", openapi_extra=_BODY)
async def findings(
    request: Request,
    service: ServiceDep,
    scoring: ScoringDep,
    rescore: Annotated[
        bool, Query(description="Score again what the records lack, and test what explains a gap.")
    ] = False,
    model: Annotated[str | None, Query(description="Which reference; the default one.")] = None,
) -> JSONResponse:
    """The findings about sample records, one group a line; a last line that is cut off is left out and counted. A token that a
    finding points at is [completion, position], completions counted over all lines."""
    body = await request.body()
    if rescore:
        service.scheduler.door.refuse_if_closed()
        service.references.named(model)
    served = ServedHere(scoring, service, asyncio.get_running_loop(), model) if rescore else None

    async def answer() -> JSONResponse:
        try:
            return JSONResponse(await asyncio.to_thread(_answer, body, served))
        except SamplesError as error:
            raise ServiceError(ErrorCode.INVALID_VALUE, str(error), param="records") from error
        except RequestRefused as error:
            raise ServiceError(ErrorCode.INVALID_VALUE, error.message, param=error.param) from error
        finally:
            if served is not None:
                served.stop.set()

    return await answer_to(request, answer())


def _answer(body: bytes, served: Served | None) -> dict[str, Any]:
    samples = _read(body)
    return {
        "groups": len(samples.records),
        "completions": len(samples),
        "tokens": len(samples.ids),
        "cut_lines": samples.cut_lines,
        "findings": [finding.as_json() for finding in check(samples, served=served)],
    }


def _read(body: bytes) -> Samples:
    """Raises SamplesError."""
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), start=1) if line.strip()]
    records: list[tuple[int, Mapping[str, Any]]] = []
    for place, (number, line) in enumerate(lines, start=1):
        try:
            record = from_json(line)
        except ValueError as error:
            if place == len(lines) and place > 1:
                return samples_of(records, cut_lines=1)
            raise SamplesError(f"line {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise SamplesError(f"line {number}: must be a JSON object with a group's prompt and completions")
        records.append((number, record))
    if not records:
        raise SamplesError("there are no records; send one group a line")
    return samples_of(records)
