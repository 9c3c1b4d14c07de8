"""`return: ["tail"]`: the mass outside best and asked tokens, through HTTP, against float64 over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import ProtocolError, ReferenceClient, ScoreResult
from server_fakes import FakeEngine, real_server, serving
from sure_reference import COMPLETIONS, PROMPTS, VOCAB, Reference

# Logits up to about 80, each rounded to fp32 a few times on its way, and the layers' own rounding before them.
TOLERANCE = 1e-4


def outside(logprobs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(N,) log of the mass outside ids (N, k)."""
    rest = logprobs.copy()
    np.put_along_axis(rest, ids, -np.inf, axis=1)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(rest).sum(-1))


def check(top: dict[str, Any], logprobs: np.ndarray, wanted: np.ndarray) -> None:
    expected = {"top_tail": outside(logprobs, top["top_ids"]), "token_tail": outside(logprobs, wanted)}
    assert expected["top_tail"].min() < np.log(1e-12)  # and some are as small as what one minus the rest would lose
    for name, values in expected.items():
        assert top[name].dtype == np.float32
        np.testing.assert_allclose(top[name], values, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def url(reference: Reference) -> Iterator[str]:
    with real_server(reference.engine) as url:
        yield url


def ask(url: str, encoding: Any, wanted: np.ndarray | None, **how: Any) -> ScoreResult:
    ids = None
    if wanted is not None:
        lengths = [len(c) for group in COMPLETIONS for c in group]
        parts = iter(np.split(wanted, np.cumsum(lengths)[:-1]))
        ids = [[next(parts) for _ in group] for group in COMPLETIONS]
    with ReferenceClient(url, encoding=encoding) as client:
        return client.score(PROMPTS, COMPLETIONS, extras=["tail"], token_ids=ids, **how)


@pytest.mark.parametrize("encoding", ["json", "tensors"])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_both_clients_read_tails_as_float64_has_them(reference: Reference, url: str, encoding: str, k: int) -> None:
    logprobs = reference.logprobs()
    best = np.argsort(-logprobs)[:, :k]
    wanted = np.concatenate([best, best[:, :1], np.arange(len(best))[:, None] % VOCAB], axis=1)  # the first one twice
    result = ask(url, encoding, wanted.astype(np.int32), top_k=k)
    check(dict(result.extras), logprobs, wanted)
    mass = np.exp(result.extras["top_logprobs"].astype(np.float64)).sum(-1) + np.exp(result.extras["top_tail"])
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)


def test_the_infer_message_has_tails_as_tensors(reference: Reference, url: str) -> None:
    flat = [c for group in COMPLETIONS for c in group]
    logprobs = reference.logprobs()
    wanted = np.argsort(-logprobs)[:, :3]
    vectors = {
        "prompt_ids": [i for p in PROMPTS for i in p], "prompt_lengths": [len(p) for p in PROMPTS],
        "completion_ids": [i for c in flat for i in c], "completion_lengths": [len(c) for c in flat],
        "group_sizes": [len(group) for group in COMPLETIONS],
    }  # fmt: skip
    inputs = [{"name": n, "shape": [len(v)], "datatype": "INT32", "data": v} for n, v in vectors.items()]
    inputs.append(
        {"name": "token_ids", "shape": list(wanted.shape), "datatype": "INT32", "data": wanted.ravel().tolist()}
    )
    body = {"inputs": inputs, "parameters": {"return": "tail", "top_k": 4}}
    answer = httpx.post(f"{url}/v2/models/tiny/infer", json=body).json()
    outputs = {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer["outputs"]}
    assert {o["name"]: o["datatype"] for o in answer["outputs"]}["top_tail"] == "FP32"
    outputs |= {name: outputs[name].astype(np.float32) for name in ("top_tail", "token_tail")}
    check(outputs, logprobs, wanted)
    known = {o["name"]: o for o in httpx.get(f"{url}/v2/models/tiny").json()["outputs"]}
    assert known["token_tail"] == {"name": "token_tail", "datatype": "FP32", "shape": [-1]}


@pytest.mark.parametrize("encoding", ["json", "tensors"])
def test_nothing_is_left_where_every_token_is_told(url: str, encoding: str) -> None:
    rows = sum(len(c) for group in COMPLETIONS for c in group)
    wanted = np.tile(np.arange(VOCAB, dtype=np.int32), (rows, 1))
    result = ask(url, encoding, wanted, top_k=VOCAB)
    assert (result.extras["top_tail"] == -np.inf).all()
    assert (result.extras["token_tail"] == -np.inf).all()


@pytest.mark.parametrize("encoding", ["json", "tensors"])
def test_only_the_tails_of_what_is_asked_come(url: str, encoding: str) -> None:
    rows = sum(len(c) for group in COMPLETIONS for c in group)
    alone = ask(url, encoding, None, top_k=2)
    assert set(alone.extras) == {"top_ids", "top_logprobs", "top_tail"}
    alone = ask(url, encoding, np.zeros((rows, 2), np.int32))
    assert set(alone.extras) == {"token_logprobs", "token_tail"}


def test_the_client_refuses_a_tail_of_nothing_before_it_is_sent(url: str) -> None:
    with pytest.raises(ProtocolError, match="ask for one of them") as found:
        ask(url, "json", None)
    assert found.value.param == "return"


@pytest.mark.anyio
@pytest.mark.parametrize("prompt", [[1, 2], "words"])
async def test_the_server_refuses_a_tail_of_nothing(engine: FakeEngine, prompt: Any) -> None:
    completions = ["and"] if isinstance(prompt, str) else [[3]]
    asked = {"groups": [{"prompt": prompt, "completions": completions}], "return": ["tail"]}
    async with serving(engine) as client:
        refused = await client.post("/v1/logprobs", json=asked)
        answered = await client.post("/v1/logprobs", json=asked | {"top_k": 2})
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "return"
    [group] = answered.json()["groups"]
    assert np.shape(group["top_tail"]) == np.shape(group["logprobs"])


@pytest.mark.anyio
async def test_with_and_without_a_tail_are_two_entries_of_the_cache(engine: FakeEngine) -> None:
    asked = {"groups": [{"prompt": [1], "completions": [[20, 21]]}], "top_k": 2}
    seen = []
    async with serving(engine, cache_bytes=2**20) as client:
        for extras in ([], ["tail"], ["tail"], []):
            answer = (await client.post("/v1/logprobs", json=asked | {"return": extras})).json()
            seen.append((answer["usage"]["cached_sequences"], "top_tail" in answer["groups"][0]))
    assert seen == [(0, False), (0, True), (1, True), (1, False)]
