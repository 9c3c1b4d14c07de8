"""Broken requests, one row each, in both encodings: a 4xx that names the field and the remedy, and then business as usual."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from broken_requests import BROKEN, MAX_BYTES, Broken
from grpo_client import ScoreRequest, wire_json, wire_tensors
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS, ROUTE_LOGPROBS
from server_fakes import FakeEngine, ask, expected, real_server


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[httpx.Client, FakeEngine]]:
    engine = FakeEngine()
    settings: dict[str, Any] = {"max_request_bytes": MAX_BYTES, "max_top_k": 8, "max_batch_tokens": 256}
    with real_server(engine, **settings) as url, httpx.Client(base_url=url) as client:
        yield client, engine


def check_good(client: httpx.Client, engine: FakeEngine, request: ScoreRequest) -> None:
    for media, wire in ((MEDIA_JSON, wire_json), (MEDIA_TENSORS, wire_tensors)):
        response = client.post(ROUTE_LOGPROBS, content=wire.encode_request(request), headers={"Content-Type": media})
        assert response.status_code == 200, response.text
        np.testing.assert_array_equal(
            wire.decode_result(response.content).logprobs, expected(request, engine.info.fingerprint)
        )


def test_there_are_enough_of_them_in_both_encodings() -> None:
    assert len({b.name for b in BROKEN}) == len(BROKEN)
    assert sum(b.media == MEDIA_JSON for b in BROKEN) >= 40
    assert sum(b.media == MEDIA_TENSORS for b in BROKEN) >= 20


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.name)
def test_a_broken_request_is_told_what_to_do_and_harms_nobody(
    broken: Broken, server: tuple[httpx.Client, FakeEngine]
) -> None:
    client, engine = server
    headers = {**({"Content-Type": broken.media} if broken.media else {}), **broken.headers}
    response = client.post(ROUTE_LOGPROBS, content=broken.body, headers=headers)
    assert response.status_code == broken.status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == broken.param
    assert broken.remedy in error["message"]
    assert error["code"]
    assert response.headers["X-Request-Id"]
    if broken.status == 409:
        assert response.headers["X-Should-Retry"] == "false"
    check_good(client, engine, ask(3, 2, 1))


MORE = [
    ("GET", "/v1/logprobs", None, 405, "use POST"),
    ("POST", "/v1/nothing", None, 404, "/docs"),
    ("POST", "/tokenize", b"{", 400, "/docs"),
    ("POST", "/tokenize", b"{}", 400, "either prompt or messages"),
    ("POST", "/tokenize", b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', 400, "either prompt"),
    ("POST", "/tokenize", b'{"prompt": 3}', 400, "prompt"),
    ("POST", "/tokenize", b'{"messages": [{"role": "user", "content": 3}]}', 422, "chat template"),
    ("POST", "/tokenize", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "not valid JSON"),
    ("POST", "/detokenize", b'{"tokens": [100]}', 422, "0 to 99"),
    ("POST", "/detokenize", b'{"tokens": ["a"]}', 400, "tokens[0]"),
    ("POST", "/tokenize", b" " * (MAX_BYTES + 1), 413, "--max-request-bytes"),
    ("POST", "/admin/reference", b"{}", 403, "--admin-key-file"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "remedy"), MORE)
def test_other_routes_refuse_in_the_same_shape(
    method: str, path: str, body: bytes | None, status: int, remedy: str, server: tuple[httpx.Client, FakeEngine]
) -> None:
    client, engine = server
    response = client.request(method, path, content=body, headers={"Content-Type": MEDIA_JSON})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert remedy in error["message"]
    check_good(client, engine, ask(3, 2, 1))
