"""Whatever is sent, the answer is a score or a 4xx in the house's form, never a 5xx.

GENERATED_REQUESTS=10000 pytest --timeout 0 tests/server/test_generated_requests.py      10,000 requests in each encoding
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import wire_json, wire_tensors
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS, ROUTE_LOGPROBS, ScoreRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_fakes import FakeEngine, serving

MANY = settings(
    max_examples=int(os.environ.get("GENERATED_REQUESTS", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

token = st.one_of(st.integers(0, 90), st.integers(0, 90), st.integers(-(2**40), 2**40))
completion = st.lists(token, max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
group = st.fixed_dictionaries(
    {"prompt": st.one_of(st.lists(token, max_size=6), st.text(max_size=9), anything)},
    optional={
        "completions": st.one_of(st.lists(completion, max_size=4), anything),
        "messages": anything,
        "odd": anything,
    },
)
body = st.fixed_dictionaries(
    {"groups": st.one_of(st.lists(group, max_size=4), anything)},
    optional={
        "temperature": st.one_of(st.floats(), st.lists(st.floats(0.1, 2), max_size=4), anything),
        "normalizer": st.one_of(st.sampled_from(["softmax", "stablemax"]), anything),
        "return": st.one_of(st.lists(st.sampled_from(["entropy", "rank", "logsumexp", "else"]), max_size=4), anything),
        "top_k": st.one_of(st.integers(-1, 9), anything),
        "token_ids": anything,
        "fingerprint": anything,
        "unknown": anything,
    },
)


class Server:
    """One app for all examples, driven from a test that is not asynchronous itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
        self._loop, self._client = loop, client

    def post(self, content: bytes, media: str) -> httpx.Response:
        return self._loop.run_until_complete(
            self._client.post(ROUTE_LOGPROBS, content=content, headers={"Content-Type": media})
        )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    loop = asyncio.new_event_loop()
    app = serving(FakeEngine())
    yield Server(loop, loop.run_until_complete(app.__aenter__()))
    loop.run_until_complete(app.__aexit__(None, None, None))
    loop.close()


def check(response: httpx.Response) -> None:
    """A result, or an error that says what to do."""
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, (response.status_code, response.text)
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10


@given(body)
@MANY
def test_any_json(server: Server, body: dict[str, Any]) -> None:
    check(server.post(json.dumps(body).encode(), MEDIA_JSON))


@given(st.data())
@MANY
def test_any_damage_to_good_tensors(server: Server, data: st.DataObject) -> None:
    prompts = data.draw(st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=5), min_size=1, max_size=3))
    request = ScoreRequest.of(prompts, [[[1, 2], []] for _ in prompts])
    content = bytearray(wire_tensors.encode_request(request))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    check(server.post(bytes(content[:cut] if data.draw(st.booleans()) else content), MEDIA_TENSORS))


@given(st.binary(max_size=200), st.sampled_from([MEDIA_JSON, MEDIA_TENSORS, "text/plain", ""]))
@MANY
def test_any_bytes(server: Server, content: bytes, media: str) -> None:
    check(server.post(content, media))


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 60), min_size=1, max_size=5),
            st.lists(st.lists(st.integers(0, 60), max_size=5), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
@MANY
def test_every_good_request_is_answered_alike_in_both_encodings(server: Server, groups: list[Any]) -> None:
    request = ScoreRequest.of([p for p, _ in groups], [c for _, c in groups])
    answers = []
    for wire, media in ((wire_json, MEDIA_JSON), (wire_tensors, MEDIA_TENSORS)):
        response = server.post(wire.encode_request(request), media)
        assert response.status_code == 200, response.text
        answers.append(
            wire_json.decode_result(response.content)
            if media == MEDIA_JSON
            else wire_tensors.decode_result(response.content)
        )
    assert len(answers[0].logprobs) == request.completion_lengths.sum()
    np.testing.assert_array_equal(answers[0].logprobs, answers[1].logprobs)
