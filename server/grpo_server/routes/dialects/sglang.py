"""POST /generate as SGLang has it, for slime, axolotl and lm-evaluation-harness' `sglang-generate`: input log-probs.

Positions from logprob_start_len on are reported; the first of them is null, as SGLang gives it. Prompts that share their
first logprob_start_len + 1 ids are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from grpo_client.protocol import IntArray
from grpo_client.wire_json.writer import in_steps, rows_of

from grpo_server.engine.contract import Hosted
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.logs import request_id
from grpo_server.routes._bodies import described, form_of, id_array, json_response, read_json
from grpo_server.routes._common import ScoringDep, ServiceDep, answer_to, aside
from grpo_server.routes.dialects._asked_positions import FIELD, Rows, rows_of_prompts, table
from grpo_server.routes.dialects._refusals import check_new_tokens, scoring_temperature
from grpo_server.routes.dialects._sequence_checks import Names, check_size
from grpo_server.routes.dialects._sequence_values import ScoredSequence, SequenceScores
from grpo_server.routes.dialects._sequences import are_many, score_sequences
from grpo_server.routes.dialects._sglang_request import SglangRequest, SglangSampling
from grpo_server.routes.dialects._strings import encode_texts, texts_behind, token_strings

router = APIRouter(tags=["SGLang"])

DEFAULT_MAX_NEW_TOKENS = 128
NAMES = Names(
    "input_ids[{}]",
    "top_logprobs_num",
    "token_ids_logprob",
    f"; {FIELD} takes for each position the ids that you need there",
)
POSITION_NAMES = Names("input_ids[{}]", "top_logprobs_num", FIELD)
# [log-prob or null, id, text or null]
Entry = tuple[float | None, int, str | None]


@router.post("/generate", response_class=Response, openapi_extra=described(SglangRequest))
async def generate(request: Request, scoring: ScoringDep, service: ServiceDep) -> Response:
    """Log-probs of the input tokens, in meta_info.input_token_logprobs."""
    asked = await read_json(request, service, SglangRequest)
    asked.check()

    async def answer(hosted: Hosted) -> Response:
        info, tokenizer = hosted.info, hosted.tokenizer
        ids = await _ids(service, hosted, asked)
        much = are_many(ids)
        names = NAMES if asked.token_ids_logprob_positions is None else POSITION_NAMES
        plans = await aside(
            service, much, lambda: _plans(asked, ids, lambda i, n, width: check_size(service, info, n, width, names, i))
        )
        scores = await score_sequences(
            service,
            scoring,
            hosted,
            [plan.sequence for plan in plans],
            names,
            top_k=max((plan.top for plan in plans), default=0),
            next_token=any(plan.wants_next for plan in plans),
        )
        strings = await token_strings(service, hosted, scores if asked.return_text_in_logprobs else ())
        new = [_new(plan, s) for plan, s in zip(plans, scores, strict=True)]
        texts = await texts_behind(service, tokenizer, new)
        name = request_id.get()

        def body() -> Any:
            objects = (
                {"text": text, "output_ids": out, "meta_info": _meta(f"{name}-{i}", plan, s, strings, info.version)}
                for i, (plan, s, out, text) in enumerate(zip(plans, scores, new, texts, strict=True))
            )
            return next(objects) if asked.single else objects

        return await json_response(request, service, info, body)

    return await answer_to(request, scoring.by_one_reference(answer, asked.model))


async def _ids(service: Service, hosted: Hosted, asked: SglangRequest) -> list[IntArray]:
    if asked.input_ids is None:
        texts = [asked.text] if isinstance(asked.text, str) else asked.text or []
        return await encode_texts(service, hosted, texts, "text[{}]", add_special_tokens=True)
    lists = [asked.input_ids] if asked.single else asked.input_ids
    return [id_array(ids) for ids in lists]  # pyright: ignore[reportArgumentType]


class _Plan:
    """What is asked of one prompt. start: first reported position, or n when none is. wanted: ids at all of them, or
    positions: the ids of each position of the input, of which the longest list has `width`."""

    def __init__(
        self,
        i: int,
        ids: IntArray,
        params: SglangSampling,
        start: int,
        top: int,
        wanted: list[int],
        positions: Rows | None,
        width: int,
    ) -> None:
        n = len(ids)
        if not -1 <= start < max(n, 1):
            raise ServiceError(
                ErrorCode.INVALID_VALUE,
                f"logprob_start_len is {start} and input_ids[{i}] has {n} tokens; send 0 to {n - 1}, or -1",
                param="logprob_start_len",
            )
        if top < 0:
            raise ServiceError(ErrorCode.INVALID_VALUE, "top_logprobs_num is below 0", param="top_logprobs_num")
        params.refuse_shaping("sampling_params.")
        self.start = n if start == -1 else start
        self.top = top
        self.wanted = id_array(wanted).tolist()
        self.wants_next = check_new_tokens(
            params.max_new_tokens, "sampling_params.max_new_tokens", DEFAULT_MAX_NEW_TOKENS
        )
        first = min(self.start + 1, n)
        asked = id_array(wanted) if self.wanted else None
        rows = None if asked is None else np.tile(asked, (n - first, 1))
        self.positions = None if positions is None else positions[first:]
        if positions is not None and width:
            rows = table(positions, first, width)
        temperature = scoring_temperature(params.temperature, "sampling_params.temperature")
        self.sequence = ScoredSequence(ids, first, temperature, rows, asked)


def _plans(asked: SglangRequest, ids: Sequence[IntArray], check: Callable[[int, int, int], None]) -> list[_Plan]:
    """check: refuses the size of prompt i of n ids that asks for so many at each."""
    wanted: Any = [] if asked.token_ids_logprob is None else asked.token_ids_logprob
    per_prompt = wanted if form_of(wanted) == "sequences" else [wanted] * len(ids)
    params = _each(asked.sampling_params, len(ids), "sampling_params")
    starts = _each(asked.logprob_start_len, len(ids), "logprob_start_len")
    tops = _each(asked.top_logprobs_num, len(ids), "top_logprobs_num")
    rows: list[Any] = _each(list(per_prompt), len(ids), "token_ids_logprob")
    width = max(map(len, rows), default=0)
    positions = None
    if asked.token_ids_logprob_positions is not None:
        positions = rows_of_prompts(asked.token_ids_logprob_positions, list(map(len, ids)), single=asked.single)
        width = max((len(row) for prompt in positions for row in prompt), default=0)
    elif any(len(row) != width for row in rows):
        raise ServiceError(
            ErrorCode.INVALID_VALUE,
            "token_ids_logprob: give equally many ids for every prompt (repeat one to fill up)",
            param="token_ids_logprob",
        )
    for i, sequence in enumerate(ids):
        check(i, len(sequence), width)
    return [
        _Plan(i, one, params[i], starts[i], tops[i], rows[i], None if positions is None else positions[i], width)
        for i, one in enumerate(ids)
    ]


def _each(value: Any, count: int, name: str) -> list[Any]:
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise ServiceError(
            ErrorCode.INVALID_VALUE, f"{name} has {len(value)} entries for {count} prompts; give one each", param=name
        )
    return value


def _new(plan: _Plan, scores: SequenceScores) -> list[int]:
    return [scores.next_token.token_id] if plan.wants_next and scores.next_token is not None else []


def best_entries(scores: SequenceScores, top: int, strings: Mapping[int, str | None]) -> Iterator[list[Entry]]:
    """The `top` best tokens of each scored position, as `input_top_logprobs` has them."""
    rows = rows_of(scores.top_ids[:, :top], scores.top_logprobs[:, :top])
    return (_entries(ids, logprobs, strings) for ids, logprobs in rows)


def _entries(ids: Sequence[int], logprobs: Sequence[float | None], strings: Mapping[int, str | None]) -> list[Entry]:
    return [(logprob, token, strings.get(token)) for token, logprob in zip(ids, logprobs, strict=True)]


def _meta(
    name: str, plan: _Plan, scores: SequenceScores, strings: Mapping[int, str | None], version: int
) -> dict[str, Any]:
    def entries(ids: Sequence[int], logprobs: Sequence[float | None]) -> list[Entry]:
        return _entries(ids, logprobs, strings)

    reported = scores.ids[plan.start :].tolist()
    lead = [None] * min(len(reported), 1)
    new = scores.next_token if plan.wants_next else None
    meta: dict[str, Any] = {
        "id": name,
        "finish_reason": {"type": "length", "length": 0 if new is None else 1},
        "prompt_tokens": len(scores),
        "completion_tokens": 0 if new is None else 1,
        "weight_version": str(version),
        "input_token_logprobs": in_steps(entries(reported, [*lead, *scores.logprobs.tolist()]), figures=3),
        "output_token_logprobs": [] if new is None else entries([new.token_id], [new.logprob]),
    }
    if plan.top:
        tops = best_entries(scores, plan.top, strings)
        meta["input_top_logprobs"] = in_steps(chain(lead, tops), figures=3 * plan.top)
        best = [] if new is None else [entries(new.top_ids[: plan.top].tolist(), new.top_logprobs[: plan.top].tolist())]
        meta["output_top_logprobs"] = best
    if plan.wanted:
        wanted = (entries(plan.wanted, row) for (row,) in rows_of(scores.token_logprobs))
        meta["input_token_ids_logprobs"] = in_steps(chain(lead, wanted), figures=3 * len(plan.wanted))
        asked = [] if new is None else [entries(plan.wanted, new.token_logprobs.tolist())]
        meta["output_token_ids_logprobs"] = asked
    if plan.positions is not None:
        scored = rows_of(scores.token_logprobs) if scores.token_logprobs.size else ([[]] for _ in plan.positions)
        asked_at = (entries(ids.tolist(), row[: len(ids)]) for ids, (row,) in zip(plan.positions, scored, strict=True))
        meta["input_token_ids_logprobs"] = in_steps(chain(lead, asked_at), figures=30)
        meta["output_token_ids_logprobs"] = []
    return meta
