"""Ids to text, cut at the ids by bytes of UTF-8: what joins to the text again, whatever the tokenizer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from grpo_client.protocol import ReferenceInfo
from server_fakes import FakeEngine, serving
from tiny_tokenizers import MAKES, TEXTS, tiny_tokenizer


class WideEngine(FakeEngine):
    @property
    def info(self) -> ReferenceInfo:
        return super().info.model_copy(update={"vocab_size": 1000})


@pytest.mark.anyio
@pytest.mark.parametrize("make", MAKES)
async def test_slices_of_bytes_join_to_the_text_and_cut_no_character(make: str) -> None:
    engine = WideEngine()
    tokenizer: Any = tiny_tokenizer(make)
    engine.tokenizer = tokenizer
    sequences = [[], *(tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS)]
    async with serving(engine) as client:
        answer = await client.post("/ui/api/pieces", json={"sequences": sequences})
    assert answer.status_code == 200, answer.text
    for ids, one in zip(sequences, answer.json()["sequences"], strict=True):
        text = one["text"].encode()
        assert one["text"] == (tokenizer.decode(ids, skip_special_tokens=False) if ids else "")
        assert len(one["offsets"]) == len(ids)
        bounds = [*one["offsets"], len(text)]
        assert bounds == sorted(bounds)
        assert "".join(text[a:b].decode() for a, b in pairwise(bounds)) == one["text"]


@pytest.mark.anyio
async def test_an_emoji_of_several_ids_is_added_by_the_last_of_them() -> None:
    engine = WideEngine()
    tokenizer: Any = tiny_tokenizer("byte-level")
    engine.tokenizer = tokenizer
    ids = tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    async with serving(engine) as client:
        [one] = (await client.post("/ui/api/pieces", json={"sequences": [ids]})).json()["sequences"]
    assert one == {"text": "a😀b", "offsets": [0, 1, 1, 1, 1, 5]}


@pytest.mark.anyio
async def test_what_cannot_be_spelled_is_refused_by_name(engine: FakeEngine) -> None:
    async with serving(engine, max_queue_tokens=7000) as client:
        for sequences, status, param in (
            ([[1, 2], [3, 100]], 422, "sequences[1][1]"),
            ([[1] * 7001], 413, "sequences"),
            ([["a"]], 400, "sequences[0][0]"),
        ):
            answer = await client.post("/ui/api/pieces", json={"sequences": sequences})
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        engine.tokenizer = None
        answer = await client.post("/ui/api/pieces", json={"sequences": [[1]]})
        assert (answer.status_code, "no tokenizer" in answer.json()["error"]["message"]) == (422, True)
