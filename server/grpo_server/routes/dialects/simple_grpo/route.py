"""POST /upload and GET /get as simple_GRPO's reference server has them; only there when started with --simple-grpo.

An upload is answered when it is scored and lies ready: what a generator was told is accepted cannot be lost to an error
that nobody sees. A trainer takes scored uploads in the order in which they became ready.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from grpo_client.protocol import ReferenceInfo
from grpo_client.tracing import span
from grpo_client.validation.fields import read_temperature

from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.middleware.head import refuse_head
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to, identity_headers
from grpo_server.routes.dialects._sequence_checks import Names
from grpo_server.routes.dialects._sequence_values import ScoredSequence, SequenceScores
from grpo_server.routes.dialects._sequences import score_sequences
from grpo_server.routes.dialects.simple_grpo.frames import read_upload, scored_frame
from grpo_server.routes.dialects.simple_grpo.shelf import Shelf

MEDIA_BYTES = "application/octet-stream"
# Around the tensor's own bytes: the zip file that torch.save writes, and the frame.
FRAME_OVERHEAD_BYTES = 4096


async def get_shelf(request: Request) -> Shelf:
    """Raises ServiceError (404) on a server without one: it is a queue, and queues are state."""
    shelf: Shelf | None = request.app.state.shelf
    if shelf is None:
        raise ServiceError(
            ErrorCode.NOT_FOUND,
            f"{request.scope['path']} is simple_GRPO's; start the server with --simple-grpo to have it",
        )
    return shelf


ShelfDep = Annotated[Shelf, Depends(get_shelf)]
router = APIRouter(tags=["simple_GRPO"])
_BYTES = {"content": {MEDIA_BYTES: {"schema": {"type": "string", "format": "binary"}}}}


@router.post("/upload", response_class=Response, openapi_extra={"requestBody": {"required": True, **_BYTES}})
async def upload(request: Request, shelf: ShelfDep, scoring: ScoringDep, service: ServiceDep) -> Response:
    """Score a batch of rollouts and lay it down for a trainer."""
    service.scheduler.door.refuse_if_closed()
    body = await request.body()

    async def answer() -> Response:
        with span("decode"):
            given = await service.in_codec(read_upload, body)
        temperature = read_temperature(1.0 if given.temperature is None else given.temperature, "temperature")
        rows, length = given.inputs.shape
        nbytes = len(body) + 4 * rows * (length - given.plen) + FRAME_OVERHEAD_BYTES
        await shelf.reserve(nbytes)
        kept = 0
        try:
            sequences = [ScoredSequence(row, given.plen, temperature) for row in given.inputs]

            async def score(hosted: Hosted) -> tuple[ReferenceInfo, list[SequenceScores]]:
                return hosted.info, await score_sequences(service, scoring, hosted, sequences, Names("inputs[{}]"))

            info, scores = await scoring.by_one_reference(score, given.model)
            with span("encode"):
                framed = await service.in_codec(scored_frame, given, np.stack([s.logprobs for s in scores]))
            shelf.put(framed, identity_headers(info))
            kept = len(framed)
        finally:
            await shelf.release(nbytes - kept)
        return Response(b"tensor", media_type=MEDIA_BYTES, headers=identity_headers(info))

    return await answer_to(request, answer())


@router.get("/get", response_class=Response, responses={200: _BYTES})
async def get(request: Request, shelf: ShelfDep) -> Response:
    """The oldest scored batch, or `empty`; the headers say which reference scored it."""
    refuse_head(request)
    content, headers = await shelf.take() or (b"empty", {})
    return Response(content, media_type=MEDIA_BYTES, headers=dict(headers))
