"""Fields of the routes that are no dialect of sequences: what would be another question is refused, null is the default."""

from __future__ import annotations

from typing import Any

import pytest
from bigram_engine import BigramEngine
from field_requests import (
    figures,
    post,
    refused,
)
from server_fakes import serving
from test_open_inference import ARRAYS, as_json
from test_simple_grpo import PLEN, upload

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"parameters": {"temperature": 2.0}}, "parameters.temperature"),
        ({"parameters": {"token_ids": [1]}}, "parameters.token_ids"),
        ({"parameters": {"top_p": 0.5}}, "parameters.top_p"),
        (
            {"outputs": [{"name": "logprobs", "parameters": {"classification": 3}}]},
            "outputs[0].parameters.classification",
        ),
        (
            {"outputs": [{"name": "logprobs", "parameters": {"shared_memory_region": "x"}}]},
            "outputs[0].parameters.shared_memory_region",
        ),
    ],
)
async def test_open_inference_refuses_parameters_that_it_would_not_heed(
    engine: BigramEngine, change: dict[str, Any], param: str
) -> None:
    response = await post(engine, "/v2/models/fake/infer", {**as_json(ARRAYS), **change})
    assert response.status_code == 400, response.text
    assert response.json()["param"] == param


async def test_open_inference_takes_null_for_the_default(engine: BigramEngine) -> None:
    plain = as_json(ARRAYS)
    answer = figures(await post(engine, "/v2/models/fake/infer", plain))
    nulls = {"id": None, "outputs": None, "parameters": None}
    assert figures(await post(engine, "/v2/models/fake/infer", {**plain, **nulls})) == answer
    settings = dict.fromkeys(["normalizer", "return", "top_k", "fingerprint", "binary_data_output"])
    inputs = [{**tensor, "parameters": None} for tensor in plain["inputs"]]
    body = {"inputs": inputs, "parameters": {**settings, "priority": 3}}
    assert figures(await post(engine, "/v2/models/fake/infer", body)) == answer


async def test_simple_grpo_takes_null_for_temperature_one(engine: BigramEngine) -> None:
    async with serving(engine, simple_grpo=True) as client:
        for base in ({"plen": PLEN}, {"plen": PLEN, "temperature": None}):
            assert (await client.post("/upload", content=upload(base))).status_code == 200
    first, second = engine.batches
    assert [p.temperature for p in first] == [p.temperature for p in second] == [1.0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
        ({"messages": [{"role": "user", "content": "a"}], "chat_template": "x"}, "chat_template"),
        ({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools"),
        ({"messages": [{"role": "user", "content": "a"}], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True}, "add_special_tokens"),
    ],
)
async def test_tokenize_refuses_what_would_give_other_ids(
    engine: BigramEngine, body: dict[str, Any], param: str
) -> None:
    refused(await post(engine, "/tokenize", body), param)


async def test_tokenize_takes_null_for_the_default(engine: BigramEngine) -> None:
    nulls = dict.fromkeys(["add_special_tokens", "add_generation_prompt", "return_token_strs", "tools", "model"])
    for body in ({"prompt": "ab"}, {"messages": [{"role": "user", "content": "a"}]}):
        assert figures(await post(engine, "/tokenize", body | nulls)) == figures(await post(engine, "/tokenize", body))
