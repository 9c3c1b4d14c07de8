"""tokens, text_offset and text of an echo: what clients that sum from an offset on rely on."""

from __future__ import annotations

from typing import Any

import bigram_engine
import pytest
import server_fakes
from bigram_engine import BigramEngine
from server_fakes import serving
from tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.anyio

ECHO = {"echo": True, "logprobs": 3}
CASES = [
    ("llama-2", "The sky is", " blue"),
    ("llama-2", "日本の空は", "青い"),
    ("byte-level", "日本語の", "空😀"),
    ("byte-level", "emoji 😀", "👩‍👩‍👧!"),
    ("byte-level NFC", "cafe\u0301 is", " blue"),
    ("metaspace", "the sky", " is"),
    ("wordpiece", "The Sky is", " blue"),
]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> BigramEngine:
    for module in (bigram_engine, server_fakes):
        monkeypatch.setattr(module, "VOCAB", 450)
    return BigramEngine()


async def echo(engine: BigramEngine, make: str, prompt: Any, **more: Any) -> dict[str, Any]:
    engine.tokenizer = tiny_tokenizer(make)  # type: ignore[assignment]
    async with serving(engine) as client:
        response = await client.post("/v1/completions", json={"prompt": prompt, **ECHO, **more})
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    return choice


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("make", "context", "continuation"), CASES)
async def test_the_sum_from_the_context_on_is_of_the_continuation(
    engine: BigramEngine, make: str, context: str, continuation: str, special: bool, max_tokens: int
) -> None:
    prompt = context + continuation
    choice = await echo(engine, make, prompt, max_tokens=max_tokens, add_special_tokens=special)
    tokenizer = tiny_tokenizer(make)
    ids = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    rest = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    own = len(rest) - len(tokenizer(context, add_special_tokens=False)["input_ids"])
    behind = ids[::-1].index(rest[-1])  # an end token that the tokenizer put there
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(prompt)
    assert choice["text"] == "".join(logprobs["tokens"])
    for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        assert choice["text"][offset:].startswith(token)
    picked = [
        logprob
        for offset, logprob in zip(logprobs["text_offset"], logprobs["token_logprobs"], strict=True)
        if offset >= len(context)
    ][: own + behind]
    assert len(picked) == own + behind
    assert picked == engine.logprobs(ids)[-own - behind :]
    for token, logprob, top in zip(
        *(logprobs[n][1:] for n in ("tokens", "token_logprobs", "top_logprobs")), strict=True
    ):
        assert top[token] >= logprob


@pytest.mark.parametrize(("make", "context", "continuation"), CASES)
async def test_ids_are_shown_as_they_decode(engine: BigramEngine, make: str, context: str, continuation: str) -> None:
    tokenizer = tiny_tokenizer(make)
    ids = tokenizer(context + continuation)["input_ids"]
    choice = await echo(engine, make, ids, max_tokens=0)
    logprobs = choice["logprobs"]
    assert choice["text"] == tokenizer.decode(ids) == "".join(logprobs["tokens"])
    assert len(logprobs["text_offset"]) == len(ids)
    before = tokenizer(context)["input_ids"]
    if ids[: len(before)] == before and len(tokenizer.decode(before)) <= logprobs["text_offset"][len(before)]:
        first = next(i for i, o in enumerate(logprobs["text_offset"]) if o >= len(tokenizer.decode(before)))
        assert sum(logprobs["token_logprobs"][first:]) == sum(engine.logprobs(ids, start=len(before)))


async def test_the_new_token_keeps_its_space(engine: BigramEngine) -> None:
    tokenizer = tiny_tokenizer("llama-2")
    word = next(token for token in sorted(tokenizer.get_vocab()) if token.startswith("▁") and len(token) > 1)
    engine._table[:, tokenizer.convert_tokens_to_ids(word)] = 50
    choice = await echo(engine, "llama-2", "The", max_tokens=1, echo=False)
    assert choice["text"] == word.replace("▁", " ")
    assert choice["logprobs"]["tokens"] == [choice["text"]]
    assert choice["logprobs"]["text_offset"] == [0]
