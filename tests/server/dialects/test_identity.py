"""Who answered: name, version, fingerprint, tokenizer and figures of an answer are of one reference, whenever it changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from asking import ADMIN, IDS, OF_TEXT, SCORING, TEXT, WITH_WORDS, Answer, open_inference, who
from named_engine import NamedEngine, NamedTokenizer, logprobs_of
from server_fakes import fingerprint, serving

pytestmark = pytest.mark.anyio


def check(answer: Answer, name: str, version: int) -> None:
    """All of the answer is of that reference."""
    assert answer.who == {"model": name, "version": str(version), "fingerprint": fingerprint(name)}
    assert answer.figures == logprobs_of(name, answer.ids, answer.start)
    word = NamedTokenizer(name).word
    assert not answer.words or list(answer.words[1:]) == [word(i) for i in answer.ids[1:]]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> NamedEngine:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    return NamedEngine("A")


async def swap(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post("/admin/reference", json={"model": name}, headers=ADMIN)
    assert response.json()["model"] == name, response.text


def named(dialect: Callable[..., Any]) -> str:
    return dialect.__name__


@pytest.mark.parametrize("dialect", SCORING, ids=named)
async def test_after_every_swap_an_answer_is_of_the_new_reference(
    engine: NamedEngine, dialect: Callable[..., Any]
) -> None:
    async with serving(engine, simple_grpo=True, cache_bytes=2**20) as client:
        for version, name in enumerate("ABCA", start=1):
            if version > 1:
                await swap(client, name)
            check(await dialect(client), name, version)
            check(await dialect(client), name, version)  # from the cache


@pytest.mark.parametrize("dialect", SCORING, ids=named)
async def test_a_swap_in_place_waits_for_who_is_in_the_queue(engine: NamedEngine, dialect: Callable[..., Any]) -> None:
    async with serving(engine, simple_grpo=True, swap_memory="in-place") as client:
        engine.holding = True
        engine.hold()
        asked = asyncio.create_task(dialect(client))
        await engine.entered()
        swapping = asyncio.create_task(swap(client, "B"))
        while (await client.get("/readyz")).status_code == 200:
            await asyncio.sleep(0)  # let the swap get to the door
        engine.let_go()
        check(await asked, "A", 1)
        await swapping
        check(await dialect(client), "B", 2)


@pytest.mark.parametrize("dialect", SCORING, ids=named)
async def test_a_swap_beside_leaves_who_is_in_the_queue_to_the_old(
    engine: NamedEngine, dialect: Callable[..., Any]
) -> None:
    async with serving(engine, simple_grpo=True) as client:
        engine.holding = True
        engine.hold()
        asked = asyncio.create_task(dialect(client))
        await engine.entered()
        await swap(client, "B")
        assert (await client.get("/readyz")).json() == {"status": "ready", "version": 2}
        engine.let_go()
        check(await asked, "A", 1)
        check(await dialect(client), "B", 2)


@pytest.mark.parametrize("dialect", SCORING, ids=named)
async def test_a_batch_that_another_reference_computed_is_not_passed_off(
    engine: NamedEngine, dialect: Callable[..., Any]
) -> None:
    """Whatever replaced it without waiting for the queue: the request is scored again, whole, by the new one."""
    engine.before_compute.append(lambda: engine.swap("B"))
    async with serving(engine, simple_grpo=True, cache_bytes=2**20, max_batch_tokens=4) as client:
        if dialect is open_inference:  # it named A
            with pytest.raises(AssertionError, match="'A' is not here"):
                await dialect(client)
        else:
            check(await dialect(client), "B", 2)
        check(await dialect(client), "B", 2)


@pytest.mark.parametrize("dialect", OF_TEXT, ids=named)
async def test_a_swap_while_text_is_read_reads_it_again(engine: NamedEngine, dialect: Callable[..., Any]) -> None:
    engine.tokenizer.before_encode.append(lambda: engine.swap("B"))
    async with serving(engine) as client:
        check(await dialect(client), "B", 2)


@pytest.mark.parametrize("dialect", WITH_WORDS, ids=named)
async def test_a_swap_while_an_answer_is_written_leaves_it_whole(
    engine: NamedEngine, dialect: Callable[..., Any]
) -> None:
    engine.tokenizer.before_decode.append(lambda: engine.swap("B"))
    async with serving(engine) as client:
        check(await dialect(client), "A", 1)
        check(await dialect(client), "B", 2)


async def test_a_request_that_names_the_old_model_is_not_answered_by_the_new(engine: NamedEngine) -> None:
    """The name is checked against who scores, also when the swap falls between reading and scoring."""
    engine.tokenizer.before_encode.append(lambda: engine.swap("B"))
    body = {"model": "A", "prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": 0}
    async with serving(engine) as client:
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == 404
    assert "'B'" in response.json()["error"]["message"]


async def test_the_lists_and_the_tokenizer_routes_follow(engine: NamedEngine) -> None:
    async with serving(engine) as client:
        for version, name in enumerate("ABC", start=1):
            if version > 1:
                await swap(client, name)
            tokenizer = NamedTokenizer(name)
            calls = {
                "models": await client.get("/v1/models"),
                "tokenize": await client.post("/tokenize", json={"model": name, "prompt": TEXT}),
                "detokenize": await client.post("/detokenize", json={"model": name, "tokens": IDS}),
                "info": await client.get("/tokenizer_info"),
            }
            for response in calls.values():
                assert who(response) == {"model": name, "version": str(version), "fingerprint": fingerprint(name)}
            assert [m["id"] for m in calls["models"].json()["data"]] == [name]
            assert calls["tokenize"].json()["tokens"] == tokenizer.ids(TEXT)
            assert calls["detokenize"].json()["prompt"] == "".join(map(tokenizer.word, IDS))
            assert calls["info"].json()["eos_token"] == f"</{name}>"
            assert (await client.get("/v1/reference")).json()["model"] == name
            assert (await client.get(f"/v2/models/{name}")).json()["versions"] == [str(version)]
            for path in ("/tokenize", "/detokenize"):
                other = await client.post(path, json={"model": "Z", "prompt": TEXT, "tokens": IDS})
                assert (other.status_code, other.json()["error"]["param"]) == (404, "model")


async def test_a_name_that_no_header_can_hold_is_percent_encoded(engine: NamedEngine) -> None:
    engine._name = "模型\r\nx"
    async with serving(engine) as client:
        headers = (await client.get("/v1/models")).headers
    assert headers["x-reference-model"] == "%E6%A8%A1%E5%9E%8B%0D%0Ax"
    assert json.dumps(dict(headers)).isascii()
