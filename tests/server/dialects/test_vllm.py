"""POST /inference/v1/generate, as prime-rl sends it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from bigram_engine import BigramEngine
from server_fakes import serving

pytestmark = pytest.mark.anyio

IDS = [20, 31, 42, 53, 20]


async def ask(engine: BigramEngine, params: dict[str, Any], status: int = 200, **fields: Any) -> dict[str, Any]:
    body = {"model": "fake", "request_id": "r1", "token_ids": IDS, "sampling_params": params, **fields}
    async with serving(engine) as client:
        response = await client.post("/inference/v1/generate", json=body)
    assert response.status_code == status, response.text
    return response.json()


async def test_prompt_logprobs(engine: BigramEngine) -> None:
    answer = await ask(engine, {"max_tokens": 1, "prompt_logprobs": 1, "temperature": 0.5}, return_token_ids=True)
    positions = answer["prompt_logprobs"]
    assert positions[0] is None
    assert [p[str(i)]["logprob"] for i, p in zip(IDS[1:], positions[1:], strict=True)] == engine.logprobs(IDS, 0.5)
    assert positions[1][str(IDS[1])]["decoded_token"] == str(IDS[1])
    assert answer["choices"] == [
        {"index": 0, "token_ids": [engine.best(IDS)], "logprobs": None, "finish_reason": "length"}
    ]
    assert (answer["request_id"], answer["prompt_token_ids"]) == ("r1", IDS)


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("start", [None, 0, 2])
async def test_rows_of_asked_ids(engine: BigramEngine, start: int | None, max_tokens: int) -> None:
    first = start or 0
    rows = [[7, 9], [9], [-1, 8], [7, 7]][: len(IDS) - 1 - first]
    params = {"max_tokens": max_tokens, "prompt_logprob_token_ids": rows, "temperature": 2.0}
    if start is not None:
        params["prompt_logprob_start"] = start
    answer = await ask(engine, params)
    matrix = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])), allow_pickle=False)
    assert matrix.dtype == np.float32
    expected = np.full((len(rows), 2), -np.inf, dtype=np.float32)
    for i, row in enumerate(rows):
        scores = engine.distribution(IDS[: first + i + 1], 2.0)
        for j, token in enumerate(row):
            expected[i, j] = -np.inf if token == -1 else scores[token]
    np.testing.assert_array_equal(matrix, expected)
    assert answer["prompt_logprobs"] is None


@pytest.mark.parametrize(
    ("params", "fields", "param"),
    [
        ({"max_tokens": 5, "prompt_logprobs": 1}, {}, "sampling_params.max_tokens"),
        ({"prompt_logprobs": 1}, {}, "sampling_params.max_tokens"),
        ({"max_tokens": 1, "n": 4}, {}, "sampling_params.n"),
        ({"max_tokens": 1}, {"stream": True}, "stream"),
        ({"max_tokens": 0}, {}, "sampling_params.prompt_logprobs"),
        ({"max_tokens": 1, "prompt_logprob_start": 1}, {}, "sampling_params.prompt_logprob_start"),
        ({"max_tokens": 1, "prompt_logprob_token_ids": [[1]]}, {}, "sampling_params.prompt_logprob_token_ids"),
        ({"max_tokens": 1, "prompt_logprob_token_ids": [[100]] * 4}, {}, "sampling_params.prompt_logprob_token_ids"),
        ({"max_tokens": 1, "prompt_logprob_token_ids": [[]] * 4}, {}, "sampling_params.prompt_logprob_token_ids"),
        ({"max_tokens": 1, "prompt_logprobs": 1, "temperature": -1}, {}, "sampling_params.temperature"),
        ({"max_tokens": 1, "prompt_logprobs": 1}, {"token_ids": []}, "token_ids"),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_name(
    engine: BigramEngine, params: dict[str, Any], fields: dict[str, Any], param: str
) -> None:
    error = (await ask(engine, params, 422, **fields))["error"]
    assert error["param"] == param, error
