"""`completion_mask` through the whole service: every encoding, the cache, the clients."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from grpo_client import AsyncReferenceClient, ReferenceClient, wire_json, wire_tensors
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS, ROUTE_LOGPROBS, Group, ScoreRequest
from grpo_client.validation.answers import check_answer
from server_fakes import CURSED, FakeEngine, expected, ids, real_server, serving, tokens

pytestmark = pytest.mark.anyio

WIRES = {MEDIA_JSON: wire_json, MEDIA_TENSORS: wire_tensors}
MASK = np.array([1, 1, 0, 0, 1, 0, 0, 1], dtype=np.bool_)


def request() -> ScoreRequest:
    first = Group(tokens(4), (tokens(5), tokens(2)), token_ids=(np.tile(ids(7, 8), (5, 1)), np.tile(ids(7, 8), (2, 1))))
    second = Group(tokens(3), (tokens(1),), token_ids=(ids(1, 2).reshape(1, 2),))
    groups = (
        replace(first, completion_mask=(MASK[:5], MASK[5:7])),
        replace(second, completion_mask=(MASK[7:],)),
    )
    return ScoreRequest(groups, extras=frozenset({"rank", "entropy"}), top_k=3)


@pytest.mark.parametrize("media_in", WIRES)
@pytest.mark.parametrize("media_out", WIRES)
async def test_every_encoding_answers_what_is_asked(engine: FakeEngine, media_in: str, media_out: str) -> None:
    async with serving(engine) as client:
        response = await client.post(
            ROUTE_LOGPROBS,
            content=WIRES[media_in].encode_request(request()),
            headers={"Content-Type": media_in, "Accept": media_out},
        )
    assert response.status_code == 200, response.text
    result = WIRES[media_out].decode_result(response.content)
    check_answer(result, request())
    everything = expected(request(), engine.info.fingerprint)
    np.testing.assert_array_equal(result.logprobs[MASK], everything[MASK])
    assert np.isnan(result.logprobs[~MASK]).all()
    assert result.extras["token_logprobs"].shape == (8, 2)
    assert result.status.tolist() == [0, 0, 0]


async def test_what_is_masked_is_not_looked_at_for_a_status(engine: FakeEngine) -> None:
    asked = {"groups": [{"prompt": [1], "completions": [[20, CURSED, 21]]}], "completion_mask": [[[1, 0, 1]]]}
    async with serving(engine) as client:
        [group] = (await client.post(ROUTE_LOGPROBS, json=asked)).json()["groups"]
    assert group["status"] == ["ok"]
    assert group["logprobs"][0][1] is None
    assert None not in (group["logprobs"][0][0], group["logprobs"][0][2])
    assert group["completion_mask"] == [[1, 0, 1]]


async def test_a_mask_that_does_not_fit_is_refused_by_its_name(engine: FakeEngine) -> None:
    asked = {"groups": [{"prompt": [1], "completions": [[20, 21]]}], "completion_mask": [[[1]]]}
    async with serving(engine) as client:
        response = await client.post(ROUTE_LOGPROBS, json=asked)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "completion_mask[0][0]"


async def test_another_mask_is_another_entry_of_the_cache(engine: FakeEngine) -> None:
    completion = {"groups": [{"prompt": [1], "completions": [[20, 21, 22]]}]}
    seen: list[tuple[int, list[float | None]]] = []
    async with serving(engine, cache_bytes=2**20) as client:
        for mask in ([1, 0, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], None):
            asked = completion if mask is None else completion | {"completion_mask": [[mask]]}
            answer = (await client.post(ROUTE_LOGPROBS, json=asked)).json()
            seen.append((answer["usage"]["cached_sequences"], answer["groups"][0]["logprobs"][0]))
    assert [cached for cached, _ in seen] == [0, 1, 0, 0, 1]  # all asked is the same question as no mask
    assert [[x is not None for x in row] for _, row in seen] == [
        [True, False, True], [True, False, True], [True, True, False], [True] * 3, [True] * 3,
    ]  # fmt: skip


@pytest.mark.parametrize("datatype", ["UINT8", "BOOL"])
async def test_the_infer_message_has_it_as_a_tensor(engine: FakeEngine, datatype: str) -> None:
    vectors = {"prompt_ids": [1], "prompt_lengths": [1], "completion_ids": [20, 21, 22], "completion_lengths": [3]}
    inputs = [
        {"name": n, "shape": [len(v)], "datatype": "INT32", "data": v}
        for n, v in (vectors | {"group_sizes": [1]}).items()
    ]
    mask = [True, False, True] if datatype == "BOOL" else [1, 0, 1]
    inputs.append({"name": "completion_mask", "shape": [3], "datatype": datatype, "data": mask})
    async with serving(engine) as client:
        answer = await client.post("/v2/models/fake/infer", json={"inputs": inputs, "parameters": {"top_k": 2}})
        known = (await client.get("/v2/models/fake")).json()
    assert answer.status_code == 200, answer.text
    outputs = {o["name"]: o for o in answer.json()["outputs"]}
    assert [x is None for x in outputs["logprobs"]["data"]] == [False, True, False]
    assert outputs["top_ids"]["shape"] == [2, 2]
    assert outputs["completion_mask"]["data"] == [1, 0, 1]
    assert {"name": "completion_mask", "datatype": "UINT8", "shape": [-1]} in known["inputs"]


@pytest.mark.parametrize("encoding", ["json", "tensors"])
def test_both_clients_have_it(encoding: str) -> None:
    import anyio

    engine = FakeEngine()
    prompts, completions = [tokens(4), tokens(3)], [[tokens(5), tokens(2)], [tokens(1)]]
    mask = [[MASK[:5], MASK[5:7]], [MASK[7:]]]

    async def asynchronous(url: str):
        async with AsyncReferenceClient(url, encoding=encoding) as client:
            return await client.score(prompts, completions, completion_mask=mask)

    with real_server(engine) as url:
        with ReferenceClient(url, encoding=encoding) as client:
            results = [
                client.score(prompts, completions, completion_mask=mask),
                client.submit(prompts, completions, completion_mask=mask).result(),
            ]
        with ReferenceClient(url, encoding=encoding, max_request_tokens=6) as client:
            results.append(client.score(prompts, completions, completion_mask=mask))
        results.append(anyio.run(asynchronous, url))
    everything = expected(request(), engine.info.fingerprint)
    for result in results:
        np.testing.assert_array_equal(result.logprobs[MASK], everything[MASK])
        np.testing.assert_array_equal(result.completion_mask, MASK)
        np.testing.assert_array_equal(result.padded()[1], [[1, 1, 0, 0, 1], [0] * 5, [1, 0, 0, 0, 0]])


async def test_the_description_of_the_api_knows_it(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        known = json.dumps((await client.get("/openapi.json")).json())
    assert known.count("completion_mask") >= 3
