"""The dialects that the probe speaks: for each, how cases become a request and where its answer has the log-probs.

Pure functions over values. An answer gives NaN where it has null, which is how these servers say "not finite".
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json, to_json

from grpo_client import wire_tensors
from grpo_client.probe.cases import Case
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS, ROUTE_LOGPROBS, ScoreRequest

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Dialect:
    """build(model, cases, temperature) -> body; read(body, cases) -> the scores of each case, (len(case),).

    many: whether one request takes several sequences. `read` raises ValueError, KeyError, TypeError or IndexError for an
    answer in another shape.
    """

    path: str
    build: Callable[[str, Sequence[Case], float], bytes]
    read: Callable[[bytes, Sequence[Case]], list[Scores]]
    media: str = MEDIA_JSON
    needs_model: bool = True
    many: bool = True


def _numbers(values: Sequence[float | None]) -> Scores:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


def _strict(body: bytes) -> Any:
    """JSON as the standard has it: a bare NaN or Infinity is an error."""
    return from_json(body, allow_inf_nan=False)


# --- native -----------------------------------------------------------------------------------------------------------


def _native_build(model: str, cases: Sequence[Case], temperature: float) -> bytes:
    return wire_tensors.encode_request(request_of(cases, temperature))


def request_of(cases: Sequence[Case], temperature: float) -> ScoreRequest:
    """The native request for these cases, each a group of its own."""
    return ScoreRequest.of(
        [c.ids[: c.start] for c in cases], [[c.ids[c.start :]] for c in cases], temperature=temperature
    )


def _native_read(body: bytes, cases: Sequence[Case]) -> list[Scores]:
    return [scores.astype(np.float64) for scores in wire_tensors.decode_result(body).ragged()]


# --- OpenAI, vLLM -----------------------------------------------------------------------------------------------------


def _completion(model: str, cases: Sequence[Case], temperature: float, **asked: Any) -> bytes:
    prompts = [list(c.ids) for c in cases]
    return to_json({"model": model, "prompt": prompts, "max_tokens": 1, "temperature": temperature, **asked})


def _choices(body: bytes) -> list[Mapping[str, Any]]:
    return sorted(_strict(body)["choices"], key=lambda choice: choice["index"])


def _openai_build(model: str, cases: Sequence[Case], temperature: float) -> bytes:
    return _completion(model, cases, temperature, echo=True, logprobs=1)


def _openai_read(body: bytes, cases: Sequence[Case]) -> list[Scores]:
    listed = [choice["logprobs"]["token_logprobs"] for choice in _choices(body)]
    return [_numbers(values[c.start : len(c.ids)]) for c, values in zip(cases, listed, strict=True)]


def _vllm_build(model: str, cases: Sequence[Case], temperature: float) -> bytes:
    return _completion(model, cases, temperature, prompt_logprobs=1)


def _vllm_read(body: bytes, cases: Sequence[Case]) -> list[Scores]:
    listed = [choice["prompt_logprobs"] for choice in _choices(body)]
    return [_by_position(c, positions) for c, positions in zip(cases, listed, strict=True)]


def _by_position(case: Case, positions: Sequence[Mapping[str, Any]]) -> Scores:
    return _numbers([positions[t][str(case.ids[t])]["logprob"] for t in range(case.start, len(case.ids))])


def _tokens_in_build(model: str, cases: Sequence[Case], temperature: float) -> bytes:
    params = {"max_tokens": 1, "temperature": temperature, "prompt_logprobs": 1}
    return to_json({"model": model, "request_id": "probe", "token_ids": list(cases[0].ids), "sampling_params": params})


def _tokens_in_read(body: bytes, cases: Sequence[Case]) -> list[Scores]:
    return [_by_position(cases[0], _strict(body)["prompt_logprobs"])]


# --- SGLang, TRL ------------------------------------------------------------------------------------------------------


def _sglang_build(model: str, cases: Sequence[Case], temperature: float) -> bytes:
    return to_json(
        {
            "input_ids": [list(c.ids) for c in cases],
            "sampling_params": {"max_new_tokens": 0, "temperature": temperature},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
    )


def _sglang_read(body: bytes, cases: Sequence[Case]) -> list[Scores]:
    listed = [answer["meta_info"]["input_token_logprobs"] for answer in _strict(body)]
    return [_numbers([entry[0] for entry in entries[c.start :]]) for c, entries in zip(cases, listed, strict=True)]


def _trl_build(model: str, cases: Sequence[Case], temperature: float) -> bytes:
    return to_json(
        {
            "sequences": [list(c.ids) for c in cases],
            "prompt_lengths": [c.start for c in cases],
            "top_logprobs": 1,
            "temperature": temperature,
            "response_format": "binary",
        }
    )


def _trl_read(body: bytes, cases: Sequence[Case]) -> list[Scores]:
    answer = _strict(body)
    flat = np.frombuffer(base64.b64decode(answer["actual_logprobs_b64"]), np.float32)
    rows = flat.reshape(answer["shape"][:2]).astype(np.float64)
    return [row[:n] for row, n in zip(rows, answer["completion_lengths"], strict=True)]


DIALECTS: Mapping[str, Dialect] = {
    "native": Dialect(ROUTE_LOGPROBS, _native_build, _native_read, MEDIA_TENSORS, needs_model=False),
    "openai": Dialect("/v1/completions", _openai_build, _openai_read),
    "vllm": Dialect("/v1/completions", _vllm_build, _vllm_read),
    "vllm-tokens": Dialect("/inference/v1/generate", _tokens_in_build, _tokens_in_read, many=False),
    "sglang": Dialect("/generate", _sglang_build, _sglang_read, needs_model=False),
    "trl": Dialect("/get_sequence_logprobs/", _trl_build, _trl_read, needs_model=False),
}
