"""What trainers send to a teacher, byte for byte as their own code writes it, is answered as it is, to 5e-5 nats.

The bodies are those of trl 1.16 (`VLLMClient.get_sequence_logprobs`, the async distillation trainer's rollout worker), of
prime-rl's `compute_prefill_logprobs`, and of the `on_policy_distillation.py` of slime and miles; what is read of the
answers is what they read.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from bigram_engine import BigramEngine
from server_fakes import serving

pytestmark = pytest.mark.anyio

NEAR = 5e-5
PROMPT, COMPLETION = [20, 31, 42], [53, 20, 8, 77]
IDS = PROMPT + COMPLETION


async def post(engine: BigramEngine, route: str, body: bytes) -> Any:
    async with serving(engine) as client:
        response = await client.post(route, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    return response.json()


def teachers(engine: BigramEngine, temperature: float = 1.0) -> list[float]:
    """log p of each completion token."""
    return engine.logprobs(IDS, temperature, start=len(PROMPT))


def best(engine: BigramEngine, t: int, k: int, temperature: float = 1.0) -> dict[int, float]:
    """The k likeliest ids after IDS[:t]."""
    scores = engine.distribution(IDS[:t], temperature)
    return {int(i): float(scores[i]) for i in np.argsort(-scores, kind="stable")[:k]}


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (5, 0.7), (8, 2.0)])
async def test_trl_server_distillation(engine: BigramEngine, k: int, temperature: float) -> None:
    body = {
        "model": "fake",
        "prompt": [IDS, IDS[:5]],
        "max_tokens": 1,
        "temperature": temperature,
        "prompt_logprobs": k,
    }
    answer = await post(engine, "/v1/completions", json.dumps(body).encode())
    for choice, ids in zip(answer["choices"], body["prompt"], strict=True):
        assert len(choice["prompt_logprobs"]) == len(ids)
        for t in range(len(PROMPT), len(ids)):
            entries = choice["prompt_logprobs"][t]
            ranked = sorted(entries.items(), key=lambda item: item[1]["rank"])[:k]
            told = {int(i): entry["logprob"] for i, entry in ranked}
            assert told == pytest.approx(best(engine, t, k, temperature), abs=NEAR)
            actual = entries[str(ids[t])]["logprob"]
            assert actual == pytest.approx(float(engine.distribution(ids[:t], temperature)[ids[t]]), abs=NEAR)


async def test_trl_async_distillation(engine: BigramEngine) -> None:
    body = {"model": "fake", "prompt": IDS, "max_tokens": 1, "temperature": 0.7, "prompt_logprobs": 8}
    answer = await post(engine, "/v1/completions", json.dumps(body).encode())
    positions = answer["choices"][0]["prompt_logprobs"]
    for t in range(len(PROMPT), len(positions)):
        items = sorted(positions[t].items(), key=lambda item: item[1]["rank"])
        assert not any(math.isnan(entry["logprob"]) for _, entry in items)
        told = {int(i): entry["logprob"] for i, entry in items}
        wanted = best(engine, t, 8, 0.7)
        assert int(items[0][0]) == next(iter(wanted))
        assert len(told) in (8, 9)  # the realised token is there at any rank
        wanted[IDS[t]] = float(engine.distribution(IDS[:t], 0.7)[IDS[t]])
        assert told == pytest.approx(wanted, abs=NEAR)


async def test_prime_rl(engine: BigramEngine) -> None:
    params = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "prompt_logprobs": 1}
    body = {"model": "fake", "token_ids": IDS, "sampling_params": params}
    answer = await post(engine, "/inference/v1/generate", json.dumps(body).encode())
    # Some versions take the entry of the token, others the first one whatever its key; 0.0 where there is none.
    positions = answer["prompt_logprobs"]
    first = [0.0 if entry is None else next(iter(entry.values()))["logprob"] for entry in positions]
    named = [0.0 if entry is None else entry[str(i)]["logprob"] for i, entry in zip(IDS, positions, strict=True)]
    assert first == named == pytest.approx([0.0, *engine.logprobs(IDS)], abs=NEAR)


SGLANG = {
    "input_ids": IDS,
    "sampling_params": {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False},
    "return_logprob": True,
    "logprob_start_len": 0,
}


def of_response(meta: dict[str, Any], field: str) -> list[Any]:
    """As slime and miles cut it: the first position is a placeholder, and the response stands at the end."""
    return meta[field][1:][-len(COMPLETION) :]


async def test_slime(engine: BigramEngine) -> None:
    answer = await post(engine, "/generate", json.dumps(SGLANG).encode())
    told = [item[0] for item in of_response(answer["meta_info"], "input_token_logprobs")]
    assert told == pytest.approx(teachers(engine), abs=NEAR)


async def test_miles_on_the_teachers_best(engine: BigramEngine) -> None:
    answer = await post(engine, "/generate", json.dumps({**SGLANG, "top_logprobs_num": 4}).encode())
    told = of_response(answer["meta_info"], "input_top_logprobs")
    for t, entries in enumerate(told, start=len(PROMPT)):
        assert {int(e[1]): e[0] for e in entries} == pytest.approx(best(engine, t, 4), abs=NEAR)


async def test_miles_on_the_students_ids_of_all_positions(engine: BigramEngine) -> None:
    answer = await post(engine, "/generate", json.dumps({**SGLANG, "token_ids_logprob": [7, 9, 20]}).encode())
    told = of_response(answer["meta_info"], "input_token_ids_logprobs")
    for t, entries in enumerate(told, start=len(PROMPT)):
        scores = engine.distribution(IDS[:t])
        assert {int(e[1]): e[0] for e in entries} == pytest.approx({i: float(scores[i]) for i in (7, 9, 20)}, abs=NEAR)
