"""Several references in one server, over HTTP with fake engines: who answers to which name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import AsyncReferenceClient, wire_json, wire_tensors
from grpo_client.errors import FingerprintMismatch, NotFound
from grpo_client.protocol import MEDIA_TENSORS, ScoreRequest
from grpo_server.app import create_app
from grpo_server.config import ServerConfig
from grpo_server.lifecycle import Service
from server_fakes import FakeEngine, ask, expected, fingerprint, make_config, running

pytestmark = pytest.mark.anyio

NAMES = ("a", "b", "c")
WEIGHTS = {"a": "first", "b": "second", "c": "third"}
REQUEST = ask(4, 3, 2)


def three(**settings: Any) -> ServerConfig:
    return make_config(model=tuple(f"{name}={WEIGHTS[name]}" for name in NAMES), **settings)


def first() -> FakeEngine:
    engine = FakeEngine("first")
    engine.served = "a"
    return engine


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with running(create_app(three(cache_bytes=2**20), first)) as client:
        yield client


async def score(client: httpx.AsyncClient, request: ScoreRequest) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    return await client.post("/v1/logprobs", content=wire_json.encode_request(request), headers=headers)


def check(answer: httpx.Response, name: str, request: ScoreRequest = REQUEST) -> None:
    result = wire_json.decode_result(answer.content)
    assert (result.reference.model, result.reference.fingerprint) == (name, fingerprint(WEIGHTS[name]))
    assert answer.headers["x-reference-model"] == name
    np.testing.assert_array_equal(result.logprobs, expected(request, fingerprint(WEIGHTS[name])))


def of(name: str | None, **more: Any) -> ScoreRequest:
    return ScoreRequest(REQUEST.groups, model=name, **more)


async def test_the_name_picks_one_and_the_first_answers_who_names_none(client: httpx.AsyncClient) -> None:
    for _ in range(2):  # the second time from the cache
        for name in NAMES:
            check(await score(client, of(name)), name)
        check(await score(client, of(None)), "a")
    headers = {"Content-Type": MEDIA_TENSORS}
    answer = await client.post("/v1/logprobs", content=wire_tensors.encode_request(of("c")), headers=headers)
    assert wire_tensors.decode_result(answer.content).reference.model == "c"


async def test_a_name_that_is_not_there_is_a_404_with_those_that_are(client: httpx.AsyncClient) -> None:
    completion = {"prompt": [1, 2], "max_tokens": 0, "echo": True, "logprobs": 0}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/logprobs", {"groups": [{"prompt": [1], "completions": [[2]]}]}),
        ("/v1/completions", completion),
        ("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {"max_tokens": 0, "prompt_logprobs": 0}}),
        ("/generate", {"input_ids": [1, 2], "return_logprob": True, "sampling_params": {"max_new_tokens": 0}}),
        ("/get_sequence_logprobs/", {"sequences": [[1, 2]], "prompt_lengths": [1]}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [3]}),
    ]
    for route, body in asked:
        answer = await client.post(route, json={**body, "model": "d"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model"), route
        assert all(repr(name) in error["message"] for name in ("d", *NAMES)), route
        for name in (None, "b"):
            answer = await client.post(route, json={**body, **({} if name is None else {"model": name})})
            assert answer.status_code == 200, (route, answer.text)
            assert answer.headers["x-reference-model"] == (name or "a")
    for path in ("/v2/models/d", "/v2/models/d/ready", "/v1/models/d", "/v1/reference?model=d"):
        assert (await client.get(path)).status_code == 404


async def test_the_lists_have_them_all(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == list(NAMES)
    assert (await client.get("/v1/models/b")).json() == listed[1]
    described = (await client.get("/v1/references")).json()["references"]
    assert [one["fingerprint"] for one in described] == [fingerprint(WEIGHTS[name]) for name in NAMES]
    assert (await client.get("/v1/reference")).json() == described[0]
    assert (await client.get("/v1/reference", params={"model": "c"})).json() == described[2]
    assert (await client.get("/v2/models/b")).json()["name"] == "b"
    assert (await client.get("/v2/models/b/ready")).json() == {"name": "b", "ready": True}
    tensor = {"name": "prompt_ids", "datatype": "INT32", "shape": [1], "data": [5]}
    others = [{**tensor, "name": n, "data": [1]} for n in ("prompt_lengths", "completion_lengths", "group_sizes")]
    inputs = [tensor, *others, {**tensor, "name": "completion_ids"}]
    assert (await client.post("/v2/models/c/infer", json={"inputs": inputs})).json()["model_name"] == "c"


async def test_a_fingerprint_is_held_against_the_reference_that_is_named(client: httpx.AsyncClient) -> None:
    check(await score(client, of("b", fingerprint=fingerprint("second"))), "b")
    refused = await score(client, of("b", fingerprint=fingerprint("first")))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "fingerprint_mismatch")


async def test_a_client_asks_for_one_of_them() -> None:
    app = create_app(three(), first)
    async with running(app):
        transport = httpx.ASGITransport(app)
        for name in (None, "b"):
            async with AsyncReferenceClient(
                "http://server", model=name, fingerprint="first", max_wait=0, transport=transport
            ) as client:
                assert (await client.info()).model == (name or "a")
                result = await client.score([[5, 6]], [[[7]]])
                assert result.reference.fingerprint == fingerprint(WEIGHTS[name or "a"])
                # another one, asked for in the request, is none that the client is pinned to
                other = await client.score_request(of("c"))
                assert other.reference.model == "c"
                with pytest.raises(FingerprintMismatch):
                    await client.score_request(of("c", fingerprint=fingerprint("first")))
        async with AsyncReferenceClient("http://server", model="d", max_wait=0, transport=transport) as client:
            with pytest.raises(NotFound, match="'a', 'b', 'c'"):
                await client.score([[5, 6]], [[[7]]])


async def test_what_waits_for_one_is_not_held_up_by_what_waits_for_another() -> None:
    """One batch is of one reference, and each has its turn."""
    engine = first()
    app = create_app(three(max_batch_tokens=50), lambda: engine)
    async with running(app) as client:
        service: Service = app.state.service
        engine.hold()
        busy = [asyncio.create_task(score(client, ask(4, 40, start=n, model="a"))) for n in range(6)]
        await engine.entered()
        while service.scheduler.admission.requests < 6:
            await asyncio.sleep(0)
        late = asyncio.create_task(score(client, of("b")))
        while service.scheduler.admission.requests < 7:
            await asyncio.sleep(0)
        engine.let_go()
        check(await late, "b")
        assert service.scheduler.admission.requests >= 3  # of a's six one was under way, one was prepared
        for n, answer in enumerate(await asyncio.gather(*busy)):
            check(answer, "a", ask(4, 40, start=n))


async def test_one_that_cannot_be_had_fails_the_start_by_its_name() -> None:
    for config, engine, said in (
        (make_config(model=("a=first", "b=missing")), first(), r"b (missing): missing is not there"),
        (make_config(model=("a=first", "b=second")), crowded(), "b (second): it does not fit into memory"),
    ):
        app = create_app(config, lambda engine=engine: engine)
        async with running(app):
            service: Service = app.state.service
            assert service.failed.is_set()
            assert service.refusal is not None
            assert said in service.refusal


def crowded() -> FakeEngine:
    engine = first()
    engine.no_room = "3 GiB would be needed, and 1 GiB is free"
    return engine


async def test_the_smallest_of_them_says_how_large_a_batch_is() -> None:
    class Smaller(FakeEngine):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.batch_tokens = 70 if name == "second" else 90
            self.served = "a"

    async with running(create_app(three(), lambda: Smaller("first"))) as client:
        assert "grpo_server_max_batch_tokens 70.0" in (await client.get("/metrics")).text


async def test_an_adapter_is_a_further_reference_on_the_base_that_is_named() -> None:
    config = make_config(model=("a=first", "b=second"), adapter=("x=lora", "y=lora@b"))
    async with running(create_app(config, first)) as client:
        described = (await client.get("/v1/references")).json()["references"]
    told = {one["model"]: one["fingerprint"] for one in described}
    assert list(told) == ["a", "b", "x", "y"]
    assert (told["x"], told["y"]) == (fingerprint("first+lora"), fingerprint("second+lora"))
