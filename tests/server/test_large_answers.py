"""A large answer goes out in chunks, whole and with its length, and its memory is counted until it is sent."""

from __future__ import annotations

from typing import Any

import pytest
from grpo_client import wire_json, wire_tensors
from grpo_client.protocol import Group, ScoreRequest
from grpo_server.middleware.bodies.budget import ByteBudget
from grpo_server.routes._answers import CHUNK, ChunkwiseResponse, gathered
from server_fakes import FakeEngine, ids, serving, tokens

pytestmark = pytest.mark.anyio


def test_chunks_are_gathered_to_the_size_of_a_write() -> None:
    small = [b"ab", b"", b"c", b"defg", b""]
    assert gathered(small, 3) == [b"abc", b"defg"]
    assert gathered([], 3) == gathered([b""], 3) == []
    assert gathered([b"ab"], 3) == [b"ab"]


async def test_what_is_not_sent_yet_is_in_the_books() -> None:
    budget = ByteBudget(10)
    held: list[int] = []
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        held.append(budget.held)

    async def receive() -> Any: ...

    response = ChunkwiseResponse([b"abc", b"de", b"f"], budget, "text/plain", {"X-A": "b"})
    await response({"type": "http"}, receive, send)
    assert held == [6, 6, 3, 1]
    assert budget.held == 0
    assert [m.get("body") for m in sent] == [None, b"abc", b"de", b"f"]
    assert [m.get("more_body") for m in sent] == [None, True, True, False]
    headers = dict(sent[0]["headers"])
    assert (headers[b"content-length"], headers[b"x-a"]) == (b"6", b"b")


async def test_a_reader_that_leaves_gives_the_memory_back() -> None:
    budget = ByteBudget(10)

    async def send(message: Any) -> None:
        if message.get("body") == b"de":
            raise OSError

    async def receive() -> Any: ...

    with pytest.raises(OSError):
        await ChunkwiseResponse([b"abc", b"de", b"f"], budget, "text/plain", {})({"type": "http"}, receive, send)
    assert budget.held == 0


@pytest.mark.parametrize("media", ["application/json", "application/x-safetensors"])
async def test_a_large_native_answer_is_whole(engine: FakeEngine, media: str) -> None:
    wire: Any = wire_json if media == "application/json" else wire_tensors
    request = ScoreRequest(
        tuple(Group(ids(1, k % 90), tuple(tokens(60, start=i) for i in range(20))) for k in range(30)), top_k=10
    )
    headers = {"Content-Type": media, "Accept": media}
    async with serving(engine, max_queue_tokens=10**6) as client:
        response = await client.post("/v1/logprobs", content=wire.encode_request(request), headers=headers)
    assert response.status_code == 200
    assert int(response.headers["content-length"]) == len(response.content) > 2 * CHUNK
    answer = wire.decode_result(response.content)
    assert len(answer) == 600
    assert answer.completion_lengths.tolist() == [60] * 600
