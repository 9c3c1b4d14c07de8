"""Who answered: name, version, fingerprint, tokenizer and figures of an answer are of one reference, whenever it changes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from grpo_client import wire_json, wire_tensors
from grpo_client.protocol import MEDIA_TENSORS, ScoreRequest
from named_engine import NamedEngine, NamedTokenizer, logprobs_of
from server_fakes import fingerprint, serving
from test_open_inference import ARRAYS, as_json
from test_simple_grpo import INPUTS, PLEN, unframe, upload

pytestmark = pytest.mark.anyio

IDS = [20, 31, 42, 53]
TEXT = "ab"
ADMIN = {"Authorization": "Bearer root"}
HEADERS = ("model", "version", "fingerprint")


@dataclass(frozen=True)
class Answer:
    """What an answer says: who, the figures it gives for `ids` from `start` on, and in the tokenizer's words, who read it."""

    who: dict[str, str]
    ids: list[int]
    figures: list[float]
    start: int = 1
    words: tuple[str, ...] = ()  # one for each id, where the dialect shows them


async def native(client: httpx.AsyncClient) -> Answer:
    body = wire_json.encode_request(ScoreRequest.of([IDS[:2]], [[IDS[2:]]]))
    response = await client.post("/v1/logprobs", content=body, headers={"Content-Type": "application/json"})
    return _native(response, wire_json.decode_result)


async def native_text(client: httpx.AsyncClient) -> Answer:
    response = await client.post("/v1/logprobs", json={"groups": [{"prompt": TEXT, "completions": [TEXT]}]})
    return _native(response, wire_json.decode_result)


async def native_tensors(client: httpx.AsyncClient) -> Answer:
    body = wire_tensors.encode_request(ScoreRequest.of([IDS[:2]], [[IDS[2:]]]))
    response = await client.post("/v1/logprobs", content=body, headers={"Content-Type": MEDIA_TENSORS})
    return _native(response, wire_tensors.decode_result)


def _native(response: httpx.Response, decode: Callable[[bytes], Any]) -> Answer:
    said = who(response)
    result = decode(response.content)
    info = result.reference
    assert said == {"model": info.model, "version": str(info.version), "fingerprint": info.fingerprint}
    prompt, completion = IDS[:2], IDS[2:]
    if result.prompt_ids is not None:
        prompt, completion = result.prompt_ids[0].tolist(), result.completion_ids[0].tolist()
        assert prompt == NamedTokenizer(info.model).ids(TEXT)
    return Answer(said, [*prompt, *completion], result.logprobs.tolist(), len(prompt))


async def openai(client: httpx.AsyncClient) -> Answer:
    return await _openai(client, IDS)


async def openai_text(client: httpx.AsyncClient) -> Answer:
    return await _openai(client, TEXT)


async def _openai(client: httpx.AsyncClient, prompt: Any) -> Answer:
    body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1, "prompt_logprobs": 0}
    response = await client.post("/v1/completions", json={**body, "return_token_ids": True})
    said, answer = who(response), response.json()
    assert (answer["model"], answer["system_fingerprint"]) == (said["model"], said["fingerprint"])
    [choice] = answer["choices"]
    ids, logprobs = choice["prompt_token_ids"], choice["logprobs"]
    if prompt == TEXT:
        assert ids == NamedTokenizer(said["model"]).ids(TEXT)
    else:
        assert choice["text"] == "".join(logprobs["tokens"])
    shown = [p[str(i)]["decoded_token"] for i, p in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True)]
    assert shown == [NamedTokenizer(said["model"]).word(i) for i in ids[1:]]
    return Answer(said, ids, logprobs["token_logprobs"][1:], words=tuple(logprobs["tokens"]))


async def vllm(client: httpx.AsyncClient) -> Answer:
    params = {"max_tokens": 0, "prompt_logprobs": 0}
    response = await client.post("/inference/v1/generate", json={"token_ids": IDS, "sampling_params": params})
    said, answer = who(response), response.json()
    assert (answer["model"], answer["system_fingerprint"]) == (said["model"], said["fingerprint"])
    entries = [p[str(i)] for i, p in zip(IDS[1:], answer["prompt_logprobs"][1:], strict=True)]
    words = ("", *(e["decoded_token"] for e in entries))
    return Answer(said, IDS, [e["logprob"] for e in entries], words=words)


async def sglang(client: httpx.AsyncClient) -> Answer:
    return await _sglang(client, {"input_ids": IDS})


async def sglang_text(client: httpx.AsyncClient) -> Answer:
    return await _sglang(client, {"text": TEXT})


async def _sglang(client: httpx.AsyncClient, prompt: dict[str, Any]) -> Answer:
    asked = {"sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": 0}
    response = await client.post("/generate", json={**prompt, **asked, "return_text_in_logprobs": True})
    said, meta = who(response), response.json()["meta_info"]
    assert meta["weight_version"] == said["version"]
    figures, ids, words = zip(*meta["input_token_logprobs"], strict=True)
    if "text" in prompt:
        assert list(ids) == NamedTokenizer(said["model"]).ids(TEXT)
    return Answer(said, list(ids), list(figures[1:]), words=words)


async def trl_legacy(client: httpx.AsyncClient) -> Answer:
    body = {"sequences": [IDS], "prompt_lengths": [1], "response_format": "binary", "top_logprobs": 1}
    response = await client.post("/get_sequence_logprobs/", json=body)
    said, answer = who(response), response.json()
    raw = np.frombuffer(base64.b64decode(answer["actual_logprobs_b64"]), "<f4")
    return Answer(said, IDS, raw.tolist())


async def open_inference(client: httpx.AsyncClient) -> Answer:
    name = (await client.get("/v1/models")).json()["data"][0]["id"]
    response = await client.post(f"/v2/models/{name}/infer", json=as_json(ARRAYS | {"temperature": np.ones(2, "<f4")}))
    said, answer = who(response), response.json()
    assert (answer["model_name"], answer["model_version"]) == (said["model"], said["version"])
    assert answer["parameters"]["fingerprint"] == said["fingerprint"]
    logprobs = next(o for o in answer["outputs"] if o["name"] == "logprobs")["data"]
    return Answer(said, [20, 31, 42, 53], logprobs[:2], 2)


async def simple_grpo(client: httpx.AsyncClient) -> Answer:
    who(await client.post("/upload", content=upload()))
    response = await client.get("/get")
    *_, refs = unframe(response.content)
    figures = torch.load(io.BytesIO(refs), weights_only=True)[0].tolist()
    return Answer(who(response), INPUTS[0].tolist(), figures, PLEN)


SCORING = [
    native,
    native_text,
    native_tensors,
    openai,
    openai_text,
    vllm,
    sglang,
    sglang_text,
    trl_legacy,
    open_inference,
    simple_grpo,
]
OF_TEXT = [native_text, openai_text, sglang_text]
WITH_WORDS = [openai, openai_text, vllm, sglang, sglang_text]


def who(response: httpx.Response) -> dict[str, str]:
    assert response.status_code == 200, response.text
    return {name: response.headers[f"x-reference-{name}"] for name in HEADERS}


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
async def test_a_swap_waits_for_who_is_in_the_queue(engine: NamedEngine, dialect: Callable[..., Any]) -> None:
    async with serving(engine, simple_grpo=True) as client:
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
