"""openai-python, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import openai
import pytest
from conftest import MODEL, TOLERANCE, Oracle, actual


@pytest.mark.parametrize("temperature", [0, 1.0, 2.0])
def test_echo(
    url: str,
    sequences: list[list[int]],
    logprobs: Oracle,
    temperature: float,
    report: Callable[[str, float], None],
) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    answer = client.completions.create(
        model=MODEL, prompt=sequences, max_tokens=1, echo=True, logprobs=2, temperature=temperature, seed=1
    )
    worst = 0.0
    for ids, choice in zip(sequences, answer.choices, strict=True):
        got = choice.logprobs
        assert got is not None
        assert got.token_logprobs is not None
        assert got.top_logprobs is not None
        assert got.token_logprobs[0] is None
        assert len(got.token_logprobs) == len(ids) + 1
        table = logprobs(ids, temperature or 1.0)
        worst = max(worst, float(np.abs(got.token_logprobs[1:-1] - actual(table, ids)).max()))
        for row, top, mine in zip(table, got.top_logprobs[1:-1], got.token_logprobs[1:-1], strict=True):
            worst = max(worst, abs(max(top.values()) - float(row.max())))
            assert mine is not None
            assert mine in top.values()
    report(f"openai echo, temperature {temperature}: largest error", worst)
    assert worst <= TOLERANCE


def test_async_and_text(url: str, logprobs: Oracle, tokenizer) -> None:
    text = "The capital of France is Paris"

    async def ask() -> list[float | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answer = await client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=0)
        assert answer.choices[0].text == text
        return answer.choices[0].logprobs.token_logprobs  # type: ignore[union-attr,return-value]

    ids = tokenizer(text)["input_ids"]
    np.testing.assert_allclose(asyncio.run(ask())[1:], actual(logprobs(ids), ids), atol=TOLERANCE)  # type: ignore[arg-type]


def test_generation_is_refused_at_once(url: str) -> None:
    """Not a status that the library would try again."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    with pytest.raises(openai.UnprocessableEntityError, match="generates no text"):
        client.completions.create(model=MODEL, prompt="a", max_tokens=20)
    with pytest.raises(openai.UnprocessableEntityError, match="generates no text"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.NotFoundError, match="hosts"):
        client.completions.create(model="another", prompt="a", max_tokens=1, echo=True)


def test_the_model_list(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    assert [m.id for m in client.models.list()] == [MODEL]
