"""The limit on bodies: by announcement, and while streaming, without ever holding more than the limit."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.middleware.bodies.limit import BodyLimit
from server_fakes import FakeEngine, real_server, serving
from starlette.types import Message, Receive, Scope, Send

MIB = 2**20
BODY = {"groups": [{"prompt": [1], "completions": [[2]]}]}


@pytest.mark.anyio
async def test_a_body_that_streams_in_is_cut_off_at_the_limit() -> None:
    """An endless body: the layer stops reading as soon as the limit is passed."""
    chunks = 0

    async def endless() -> Message:
        nonlocal chunks
        chunks += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            await receive()

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent by this layer")

    with pytest.raises(ServiceError) as caught:
        await BodyLimit(application, 10_000)({"type": "http", "headers": []}, endless, send)
    assert caught.value.code is ErrorCode.BODY_TOO_LARGE
    assert chunks == 11


@pytest.mark.anyio
async def test_a_body_of_exactly_the_limit_passes(engine: FakeEngine) -> None:
    body = httpx.Request("POST", "http://x", json=BODY).content
    padded = body.ljust(500)
    headers = {"Content-Type": "application/json"}
    async with serving(engine, max_request_bytes=500) as client:
        assert (await client.post("/v1/logprobs", content=padded, headers=headers)).status_code == 200
        assert (await client.post("/v1/logprobs", content=padded + b" ", headers=headers)).status_code == 413


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/logprobs", "/tokenize"])  # one reads its body itself, FastAPI reads the other's
async def test_an_unannounced_body_is_a_413_that_names_limit_and_flag(engine: FakeEngine, path: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    async with serving(engine, max_request_bytes=5000) as client:
        response = await client.post(path, content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["code"] == "body_too_large"
    assert "5000" in error["message"]
    assert "--max-request-bytes" in error["message"]


@pytest.mark.parametrize("announced", [True, False], ids=["Content-Length", "chunked"])
def test_a_hundred_megabytes_are_refused_over_a_real_socket_without_being_held(announced: bool) -> None:
    size, chunk = 100 * MIB, b" " * MIB

    def body() -> Iterator[bytes]:
        for _ in range(size // MIB):
            yield chunk

    headers = {"Content-Type": "application/json", **({"Content-Length": str(size)} if announced else {})}
    with real_server(FakeEngine(), max_request_bytes=4 * MIB) as url, httpx.Client(base_url=url, timeout=30) as client:
        tracemalloc.start()
        try:
            response = client.post("/v1/logprobs", content=body(), headers=headers)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert response.status_code == 413
        assert "--max-request-bytes" in response.json()["error"]["message"]
        # The limit twice (chunks, and what joins them) and what the client itself holds: far from the hundred.
        assert peak < 20 * MIB
        assert client.post("/v1/logprobs", json=BODY).status_code == 200
