"""POST /ui/api/pieces: the text of ids, cut at the ids, for people to read."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Any

import numpy as np
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._bodies import Ids, described, id_array, json_response, read_json
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to
from grpo_server.routes.ui.guard import api_router
from grpo_server.text.requests import no_tokenizer
from grpo_server.text.spelling import Spelled, Speller

router = api_router()


class PiecesRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Whose tokenizer; the default one's.")
    sequences: Annotated[list[Ids], Field(fail_fast=True)] = Field(description="Token ids of each sequence.")


class PiecesOut(BaseModel):
    text: str = Field(description="Special tokens included.")
    offsets: list[int] = Field(
        description="Where each id begins, in bytes of the text's UTF-8. Ids that spell a character together begin at the same "
        "place, and the last of them adds it."
    )


class PiecesResponse(BaseModel):
    sequences: list[PiecesOut]


@router.post("/pieces", response_model=PiecesResponse, openapi_extra=described(PiecesRequest))
async def pieces(request: Request, service: ServiceDep, scoring: ScoringDep) -> Response:
    """The whole text of each sequence and where its ids stand in it: an id alone may be no character."""
    asked = await read_json(request, service, PiecesRequest)
    hosted = scoring.hosted(asked.model)
    if hosted.tokenizer is None:
        raise no_tokenizer()
    _check(asked, hosted.info.vocab_size, service.config.max_queue_tokens)
    tokenizer = hosted.tokenizer

    async def answer() -> Response:
        speller = await service.in_tokenizer(Speller, tokenizer)
        spelled = [await service.in_tokenizer(speller.spell, id_array(ids).tolist()) for ids in asked.sequences]
        return await json_response(
            request, service, hosted.info, lambda: {"sequences": [_in_bytes(one) for one in spelled]}
        )

    return await answer_to(request, answer())


def _check(asked: PiecesRequest, vocabulary: int, most: int) -> None:
    """Raises ServiceError (413, 422)."""
    if (total := sum(map(len, asked.sequences))) > most:
        raise ServiceError(
            ErrorCode.REQUEST_TOO_LARGE,
            f"sequences have {total} ids together; the limit is {most}; send fewer at once",
            param="sequences",
        )
    for s, ids in enumerate(map(id_array, asked.sequences)):
        if (wrong := np.flatnonzero(ids >= vocabulary)).size:
            raise ServiceError(
                ErrorCode.INVALID_VALUE,
                f"sequences[{s}][{wrong[0]}] is {ids[wrong[0]]}; the vocabulary has {vocabulary} ids, 0 to {vocabulary - 1}",
                param=f"sequences[{s}][{wrong[0]}]",
            )


def _in_bytes(spelled: Spelled) -> dict[str, Any]:
    text = spelled.text.encode("utf-8", "replace").decode()  # a lone surrogate, which JSON in UTF-8 cannot hold
    at = [0, *accumulate(len(character.encode()) for character in text)]
    return {"text": text, "offsets": [at[offset] for offset in spelled.offsets]}
