"""POST /get_sequence_logprobs/, the teacher route of TRL before 1.x."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from bigram_engine import BigramEngine
from server_fakes import serving

pytestmark = pytest.mark.anyio

SEQUENCES = [[20, 31, 42, 53, 20], [20, 31, 7]]
BODY = {"sequences": SEQUENCES, "prompt_lengths": [2, 2], "top_logprobs": 2, "temperature": 2.0}


async def ask(engine: BigramEngine, status: int = 200, **change: Any) -> dict[str, Any]:
    async with serving(engine) as client:
        assert (await client.get("/health/")).status_code == 200
        response = await client.post("/get_sequence_logprobs/", json={**BODY, **change})
    assert response.status_code == status, response.text
    return response.json()


async def test_json_holds_the_best_and_the_actual_token(engine: BigramEngine) -> None:
    answer = await ask(engine)
    for ids, logprobs, tokens in zip(SEQUENCES, answer["logprobs"], answer["logprob_token_ids"], strict=True):
        assert len(logprobs) == len(ids) - 2
        for t, (row, row_ids) in enumerate(zip(logprobs, tokens, strict=True), start=2):
            scores = engine.distribution(ids[:t], 2.0)
            assert row_ids[:2] == (-scores).argsort()[:2].tolist()
            assert row == [float(scores[i]) for i in row_ids]
            assert ids[t] in row_ids
    [[piece]] = engine.batches
    assert piece.prompt.tolist() == [20, 31]


@pytest.mark.parametrize("lengths", [[2, 2], [0, 3], [5, 1]])
async def test_binary(engine: BigramEngine, lengths: list[int]) -> None:
    answer = await ask(engine, response_format="binary", prompt_lengths=lengths)
    shape = answer["shape"]
    completions = [len(s) - n for s, n in zip(SEQUENCES, lengths, strict=True)]
    assert shape == [2, max(completions), 2]
    assert answer["completion_lengths"] == completions

    def array(name: str, dtype: str, width: int) -> np.ndarray:
        return np.frombuffer(base64.b64decode(answer[name]), dtype).reshape(*shape[:2], width)

    top, top_ids = array("logprobs_b64", "<f4", 2), array("token_ids_b64", "<i4", 2)
    actual, actual_ids = array("actual_logprobs_b64", "<f4", 1), array("actual_token_ids_b64", "<i4", 1)
    for b, (ids, first) in enumerate(zip(SEQUENCES, lengths, strict=True)):
        for place in range(shape[1]):
            t = first + place
            if t == 0 or t >= len(ids):  # nothing predicts the first token; the rest is padding
                assert actual[b, place, 0] == top[b, place, 0] == -np.inf
                continue
            scores = engine.distribution(ids[:t], 2.0)
            assert (actual[b, place, 0], actual_ids[b, place, 0]) == (scores[ids[t]], ids[t])
            np.testing.assert_array_equal(top_ids[b, place], (-scores).argsort()[:2])
            np.testing.assert_array_equal(top[b, place], scores[top_ids[b, place]])


async def test_nothing_predicts_the_very_first_token(engine: BigramEngine) -> None:
    answer = await ask(engine, prompt_lengths=[0, 3])
    assert answer["logprobs"][0][0] == []
    assert len(answer["logprobs"][0]) == 5
    assert answer["logprobs"][1] == []


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"prompt_lengths": [2]}, 422, "prompt_lengths"),
        ({"prompt_lengths": [2, 9]}, 422, "prompt_lengths[1]"),
        ({"temperature": 0}, 422, "temperature"),
        ({"sequences": [[5, 100], [5, 6]]}, 422, "sequences[0]"),
        ({"top_logprobs": 0}, 400, "top_logprobs"),
        ({"response_format": "pickle"}, 400, "response_format"),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_name(
    engine: BigramEngine, change: dict[str, Any], status: int, param: str
) -> None:
    error = (await ask(engine, status, **change))["error"]
    assert error["param"] == param, error
