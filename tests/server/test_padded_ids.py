"""Asked ids with holes and repetitions, log-probs in half the bytes, and what so many figures cost, through the service."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from grpo_client import ProtocolError, ReferenceClient, RequestRefused, ScoreRequest, wire_json, wire_tensors
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS, ROUTE_LOGPROBS, figure_dtype, put_rounded, rounded
from grpo_client.validation.answers import check_answer
from grpo_server.scheduler.assembly import host_bytes
from server_fakes import VOCAB, FakeEngine, real_server, serving
from sure_reference import Reference

pytestmark = pytest.mark.anyio

WIRES: dict[str, Any] = {MEDIA_JSON: wire_json, MEDIA_TENSORS: wire_tensors}
PROMPT, COMPLETION = [1, 2, 3], [4, 5, 6, 7]
PADDED = [[9, -1, 9], [-1, -1, -1], [6, 9, 6], [0, 1, 60]]


@pytest.fixture(scope="module")
def url() -> Any:
    with real_server(Reference().engine) as url:
        yield url


def expected(url: str) -> np.ndarray:
    """(4, 61): every log-prob there is."""
    with ReferenceClient(url) as client:
        every = np.tile(np.arange(61, dtype=np.int32), (4, 1))
        return np.asarray(client.score([PROMPT], [COMPLETION], token_ids=[every]).extras["token_logprobs"], np.float64)


@pytest.mark.parametrize("encoding", ["json", "tensors"])
def test_no_id_has_no_mass_and_an_id_that_comes_twice_has_its_own_once(url: str, encoding: Any) -> None:
    whole = expected(url)
    with ReferenceClient(url, encoding=encoding) as client:
        result = client.score([PROMPT], [COMPLETION], token_ids=[PADDED], extras=["tail"])
    assert result.status.tolist() == [0]
    asked = np.array(PADDED)
    there = np.where(asked < 0, -np.inf, np.take_along_axis(whole, np.maximum(asked, 0), 1))
    np.testing.assert_allclose(result.extras["token_logprobs"], there, rtol=1e-6)
    for row, ids, tail in zip(whole, PADDED, result.extras["token_tail"], strict=True):
        outside = np.delete(row, sorted({i for i in ids if i >= 0}))
        assert tail == pytest.approx(np.logaddexp.reduce(outside), abs=1e-4)
    assert result.extras["token_tail"][1] == pytest.approx(0, abs=1e-6)  # nothing asked: all is outside


@pytest.mark.parametrize("ids", [[[0, VOCAB]], [[0, -2]], [[2**31 - 1, 0]]])
@pytest.mark.parametrize("media", WIRES)
async def test_what_is_neither_an_id_nor_none_is_refused_by_its_name(
    engine: FakeEngine, ids: list[list[int]], media: str
) -> None:
    good = ScoreRequest.of([[1]], [[[2]]], token_ids=[[[[0, -1]]]])
    group = replace(good.groups[0], token_ids=(np.array(ids, np.int32),))
    async with serving(engine) as client:
        response = await client.post(
            ROUTE_LOGPROBS,
            content=WIRES[media].encode_request(replace(good, groups=(group,))),
            headers={"Content-Type": media, "Accept": MEDIA_JSON},
        )
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith("token_ids[0][0]")


@pytest.mark.parametrize("wrong", [-2, 2**31, True, 1.5])
def test_the_client_refuses_the_same(wrong: Any) -> None:
    with pytest.raises(ProtocolError) as found:
        ScoreRequest.of([[1]], [[[2]]], token_ids=[[[[0, wrong]]]])
    assert found.value.param == "token_ids[0][0][0][1]"
    with pytest.raises(ProtocolError):
        ScoreRequest.of([[1, -1]], [[[2]]])  # a prompt has no holes


@pytest.mark.parametrize("media_in", WIRES)
@pytest.mark.parametrize("media_out", WIRES)
async def test_half_precision_in_every_encoding(engine: FakeEngine, media_in: str, media_out: str) -> None:
    request = ScoreRequest.of(
        [[1, 2]], [[[20, 21, 22], [30]]], token_ids=[[[[5, -1]] * 3, [[6, 6]]]], top_k=3, extras=["tail"]
    )
    answers = []
    async with serving(engine, cache_bytes=2**20) as client:
        for top_dtype in ("float32", "float16", "float16"):
            asked = replace(request, top_dtype=top_dtype)
            response = await client.post(
                ROUTE_LOGPROBS,
                content=WIRES[media_in].encode_request(asked),
                headers={"Content-Type": media_in, "Accept": media_out},
            )
            answers.append(WIRES[media_out].decode_result(response.content))
            check_answer(answers[-1], asked)
    full, half, again = answers
    assert again.usage.cached_sequences == 2
    for name, values in full.extras.items():
        assert half.extras[name].dtype == figure_dtype(name, "float16")
        np.testing.assert_array_equal(half.extras[name], rounded(values, half.extras[name].dtype))
        np.testing.assert_array_equal(half.extras[name], again.extras[name])
    np.testing.assert_array_equal(half.logprobs, full.logprobs)
    assert half.extras["top_logprobs"].dtype == half.extras["token_logprobs"].dtype == np.float16
    assert half.extras["top_ids"].dtype == np.int32


def test_an_answer_in_another_precision_than_asked_is_none(url: str) -> None:
    asked = ScoreRequest.of([PROMPT], [[COMPLETION]], top_k=2)
    with ReferenceClient(url) as client:
        result = client.score_request(asked)
        with pytest.raises(ProtocolError, match="came as float32"):
            check_answer(result, replace(asked, top_dtype="float16"))


def test_what_is_far_below_stays_finite_in_half_precision() -> None:
    values = rounded(np.array([-1e6, -70000.0, -np.inf, np.nan, -0.1], np.float32), np.dtype(np.float16))
    assert values[:2].tolist() == [-65504, -65504]
    assert values[2] == -np.inf
    assert np.isnan(values[3])
    assert values[4] == np.float16(-0.1)


def test_figures_are_rounded_wherever_they_are_put() -> None:
    values = -np.random.default_rng(0).random((1500, 64), np.float32) * 2e5
    places = np.random.default_rng(1).permutation(2000)[:1500]
    for rows in (slice(100, 1600), places):
        out = np.zeros((2000, 64), np.float16)
        put_rounded(out, rows, values)
        np.testing.assert_array_equal(out[rows], rounded(values, out.dtype))
        assert not np.delete(out, np.arange(2000)[rows], axis=0).any()


def test_half_precision_takes_half_the_bytes(url: str) -> None:
    n, k = 64, 32
    sizes = {}
    for top_dtype in ("float32", "float16"):
        asked = ScoreRequest.of([[1]], [[[2] * n]], top_k=k, top_dtype=top_dtype)
        with ReferenceClient(url) as client:
            sizes[top_dtype] = len(wire_tensors.encode_result(client.score_request(asked)))
    assert sizes["float32"] - sizes["float16"] == pytest.approx(n * k * 4, abs=8)


async def test_the_infer_message_has_narrow_tensors(engine: FakeEngine) -> None:
    vectors = {"prompt_ids": [1], "prompt_lengths": [1], "completion_ids": [20, 21], "completion_lengths": [2]}
    inputs = [
        {"name": n, "shape": [len(v)], "datatype": "INT32", "data": v}
        for n, v in (vectors | {"group_sizes": [1]}).items()
    ]
    inputs.append({"name": "token_ids", "shape": [2, 2], "datatype": "INT32", "data": [5, -1, -1, 6]})
    asked = {"inputs": inputs, "parameters": {"top_k": 2, "top_dtype": "float16"}}
    async with serving(engine) as client:
        answer = await client.post("/v2/models/fake/infer", json=asked)
    types = {o["name"]: o["datatype"] for o in answer.json()["outputs"]}
    assert types["top_logprobs"] == types["token_logprobs"] == "FP16"
    assert types["top_ids"] == "UINT16"


async def test_an_unknown_precision_is_refused(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        body = {"groups": [{"prompt": [1], "completions": [[2]]}], "top_dtype": "int8"}
        response = await client.post(ROUTE_LOGPROBS, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "top_dtype"


def test_the_queue_counts_best_and_asked_tokens_of_an_answer() -> None:
    n, k, j = 1000, 1024, 64
    plain = host_bytes(ScoreRequest.of([[1]], [[[2] * n]]))
    best = host_bytes(ScoreRequest.of([[1]], [[[2] * n]], top_k=k, extras=["tail"]))
    asked = host_bytes(ScoreRequest.of([[1]], [[[2] * n]], token_ids=[[np.zeros((n, j), np.int32)]]))
    assert best - plain == n * (8 * k + 4)
    assert asked - plain == n * 8 * j  # the ids and their log-probs
    half = host_bytes(ScoreRequest.of([[1]], [[[2] * n]], top_k=k, top_dtype="float16"))
    assert half - plain == n * 6 * k


def test_an_answer_that_the_queue_cannot_hold_is_refused_before_it_is_computed() -> None:
    engine = FakeEngine()
    with (
        real_server(engine, max_queue_bytes=2**20, max_top_k=100) as url,
        ReferenceClient(url, max_wait=0) as client,
    ):
        with pytest.raises(RequestRefused, match="top_k or fewer token_ids") as found:
            client.score([[1]], [[[2] * 60] * 64], top_k=100)
        assert found.value.status == 413
        assert not engine.batches
