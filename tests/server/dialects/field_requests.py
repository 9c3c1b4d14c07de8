"""Small requests of every dialect with the fields that a test adds, and what came of them."""

from __future__ import annotations

from typing import Any

import httpx
from bigram_engine import BigramEngine
from server_fakes import serving

IDS = [20, 31, 42, 53, 20]


# Values with which a sampling parameter says: the distribution as it is.
NEUTRAL: dict[str, list[Any]] = {
    "n": [1],
    "top_p": [1, 1.0],
    "top_k": [0, -1, 1 << 30],
    "min_p": [0, 0.0],
    "frequency_penalty": [0],
    "presence_penalty": [0.0],
    "repetition_penalty": [1.0],
    "logit_bias": [{}],
    "bad_words": [[]],
    "stream": [False],
    "custom_logit_processor": [[None]],
    "response_format": [{"type": "text"}],
    # of text that is not generated, and of how a server works
    "seed": [7],
    "stop": ["x", ["x"]],
    "stop_token_ids": [[5]],
    "ignore_eos": [True],
    "skip_special_tokens": [False],
    "priority": [3],
    "cache_salt": ["salt"],
    "user": ["me"],
}


SHAPING: dict[str, Any] = {
    "n": 2,
    "top_p": 0.9,
    "top_k": 50,
    "min_p": 0.1,
    "typical_p": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1.0},
    "bad_words": ["x"],
    "allowed_token_ids": [5],
    "structured_outputs": {"choice": ["a"]},
    "guided_choice": ["a"],
    "guided_json": {"type": "object"},
    "response_format": {"type": "json_object"},
    "json_schema": "{}",
    "regex": "a+",
    "ebnf": "root",
    "custom_params": {"a": 1},
    "use_beam_search": True,
    "stream": True,
    "lora_path": "x",
    "lora_request": {"name": "x"},
}


OPENAI_SHAPING = SHAPING | {
    "best_of": 2,
    "min_tokens": 1,
    "suffix": "x",
    "prompt_embeds": "AAAA",
    "truncate_prompt_tokens": 0,
    "top_logprobs": 3,
}


async def post(engine: BigramEngine, path: str, body: dict[str, Any], **settings: Any) -> httpx.Response:
    async with serving(engine, **settings) as client:
        return await client.post(path, json=body)


async def openai(engine: BigramEngine, change: dict[str, Any], **settings: Any) -> httpx.Response:
    body = {"prompt": IDS, "max_tokens": 1, "echo": True, "logprobs": 2, "prompt_logprobs": 1}
    return await post(engine, "/v1/completions", body | change, **settings)


async def vllm(engine: BigramEngine, change: dict[str, Any], **settings: Any) -> httpx.Response:
    params = {"max_tokens": 1, "prompt_logprobs": 2} | change
    return await post(
        engine, "/inference/v1/generate", {"token_ids": IDS, "request_id": "r", "sampling_params": params}, **settings
    )


async def sglang(engine: BigramEngine, change: dict[str, Any], **settings: Any) -> httpx.Response:
    return await sglang_top(engine, {"sampling_params": {"max_new_tokens": 1} | change}, **settings)


async def sglang_top(engine: BigramEngine, change: dict[str, Any], **settings: Any) -> httpx.Response:
    body = {"input_ids": IDS, "sampling_params": {"max_new_tokens": 1}, "return_logprob": True, "logprob_start_len": 0}
    return await post(engine, "/generate", body | change, **settings)


async def legacy(engine: BigramEngine, change: dict[str, Any], **settings: Any) -> httpx.Response:
    body = {"sequences": [IDS], "prompt_lengths": [1]}
    return await post(engine, "/get_sequence_logprobs/", body | change, **settings)


def figures(response: httpx.Response) -> Any:
    """The answer without what differs from one request to the next."""
    assert response.status_code == 200, response.text
    answer = response.json()
    for varying in ("id", "created", "request_id"):
        answer.pop(varying, None)
    answer.get("meta_info", {}).pop("id", None)
    return answer


def refused(response: httpx.Response, param: str, status: int = 422) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert param.rpartition(".")[2] in error["message"]
    return error["message"]
