"""One scoring request in every dialect, and who the answer says it is of."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import torch
from grpo_client import wire_json, wire_tensors
from grpo_client.protocol import MEDIA_TENSORS, ScoreRequest
from named_engine import NamedTokenizer
from test_open_inference import ARRAYS, as_json
from test_simple_grpo import INPUTS, PLEN, unframe, upload

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
