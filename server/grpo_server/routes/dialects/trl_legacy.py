"""POST /get_sequence_logprobs/, the teacher route of TRL's own vLLM server before TRL 1.x.

Newer ones (`trl.generation.vllm_client.VLLMClient`) ask /v1/completions; see `openai`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response
from grpo_client.validation.fields import read_temperature
from grpo_client.wire_json.writer import in_steps, rows_of
from pydantic import BaseModel, ConfigDict, Field

from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._bodies import Ids, Numbers, described, id_array, json_response, read_json
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to
from grpo_server.routes.dialects._sampling import null_means
from grpo_server.routes.dialects._sequence_checks import Names
from grpo_server.routes.dialects._sequence_values import ScoredSequence, SequenceScores
from grpo_server.routes.dialects._sequences import score_sequences

router = APIRouter(tags=["TRL"])

NAMES = Names("sequences[{}]", "top_logprobs")


class SequenceLogprobsRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="Which reference; the default one.")
    sequences: Annotated[list[Ids], Field(fail_fast=True)] = Field(description="Prompt and completion in one.")
    prompt_lengths: Numbers = Field(description="Positions from there on are reported.")
    top_logprobs: Annotated[int, Field(ge=1), null_means(100)] = Field(
        100, description="So many best tokens a position."
    )
    temperature: Annotated[float, null_means(1.0)] = Field(1.0, description="Logits are divided by it.")
    response_format: Annotated[Literal["json", "binary"], null_means("json")] = Field(
        "json", description="binary: arrays in base64."
    )


@router.post("/get_sequence_logprobs/", response_class=Response, openapi_extra=described(SequenceLogprobsRequest))
async def get_sequence_logprobs(request: Request, scoring: ScoringDep, service: ServiceDep) -> Response:
    """The teacher's best tokens at every completion position, and the log-prob of the one that is there."""
    asked = await read_json(request, service, SequenceLogprobsRequest)
    temperature = read_temperature(asked.temperature, "temperature")
    _check_lengths(asked)
    sequences = [
        ScoredSequence(id_array(ids), max(1, length), temperature)
        for ids, length in zip(asked.sequences, asked.prompt_lengths, strict=True)
    ]

    async def answer(hosted: Hosted) -> Response:
        scores = await score_sequences(
            service, scoring, hosted, sequences, NAMES, top_k=asked.top_logprobs, extras=["rank"]
        )
        build = _as_lists if asked.response_format == "json" else _as_arrays
        return await json_response(request, service, hosted.info, lambda: build(asked, scores))

    return await answer_to(request, scoring.by_one_reference(answer, asked.model))


def _check_lengths(asked: SequenceLogprobsRequest) -> None:
    if len(asked.prompt_lengths) != len(asked.sequences):
        raise _wrong("prompt_lengths", f"has {len(asked.prompt_lengths)} entries for {len(asked.sequences)} sequences")
    for i, (ids, length) in enumerate(zip(asked.sequences, asked.prompt_lengths, strict=True)):
        if not 0 <= length <= len(ids):
            raise _wrong(f"prompt_lengths[{i}]", f"is {length}; the sequence has {len(ids)} tokens")


def _wrong(param: str, what: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_VALUE, f"{param} {what}", param=param)


def _as_lists(asked: SequenceLogprobsRequest, scores: Sequence[SequenceScores]) -> dict[str, Any]:
    """Per position the best, best first, and the actual token where it belongs: after them if it is none of them.

    A position that nothing predicts (the very first, under prompt_length 0) is an empty list.
    """

    def rows(length: int, s: SequenceScores, which: int) -> Iterator[list[Any]]:
        yield from ([] for _ in range(min(s.start - length, len(s))))
        for token, logprob, ids, logprobs in rows_of(s.ids[s.start :], s.logprobs, s.top_ids, s.top_logprobs):
            if token not in ids:
                ids.append(token)
                logprobs.append(logprob)
            yield (logprobs, ids)[which]

    def every(which: int) -> Iterator[Any]:
        for length, s in zip(asked.prompt_lengths, scores, strict=True):
            yield in_steps(rows(length, s, which), figures=1 + s.top_ids.shape[1])

    return {"logprobs": every(0), "logprob_token_ids": every(1)}


def _as_arrays(asked: SequenceLogprobsRequest, scores: Sequence[SequenceScores]) -> dict[str, Any]:
    """(B, longest completion, top_logprobs) float32 padded with -inf and int32 padded with 0, in base64."""
    lengths = [len(s) - length for s, length in zip(scores, asked.prompt_lengths, strict=True)]
    shape = (len(scores), max(lengths), asked.top_logprobs)
    top = np.full(shape, -np.inf, dtype="<f4")
    top_ids = np.zeros(shape, dtype="<i4")
    actual = np.full((*shape[:2], 1), -np.inf, dtype="<f4")
    actual_ids = np.zeros((*shape[:2], 1), dtype="<i4")
    for b, (s, length) in enumerate(zip(scores, asked.prompt_lengths, strict=True)):
        where = slice(s.start - length, len(s) - length)
        top[b, where], top_ids[b, where] = s.top_logprobs, s.top_ids
        actual[b, where, 0], actual_ids[b, where, 0] = s.logprobs, s.ids[s.start :]
    return {
        "logprobs_b64": _base64(top),
        "token_ids_b64": _base64(top_ids),
        "actual_logprobs_b64": _base64(actual),
        "actual_token_ids_b64": _base64(actual_ids),
        "shape": shape,
        "completion_lengths": lengths,
    }


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
