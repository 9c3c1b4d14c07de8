"""Content-Digest: on what goes out, and held against what comes in."""

from __future__ import annotations

import gzip
import itertools
import random
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from grpo_client import ReferenceClient, wire_json, wire_tensors
from grpo_client.content_digest import HEADER, header_of
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS
from grpo_server.routes._answers import CHUNK
from server_fakes import FakeEngine, ask, expected, real_server, serving

REQUEST = ask(5, 4, 3)
JSON = {"Content-Type": MEDIA_JSON}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/metrics", "/v1/reference", "/v1/models", "/openapi.json", "/no"]
)
async def test_every_answer_in_one_piece_has_the_digest_of_its_bytes(engine: FakeEngine, path: str) -> None:
    async with serving(engine) as client:
        answer = await client.get(path)
        assert answer.headers[HEADER] == header_of([answer.content])
        assert HEADER not in (await client.head(path)).headers


@pytest.mark.anyio
@pytest.mark.parametrize("media", [MEDIA_JSON, MEDIA_TENSORS])
@pytest.mark.parametrize("chunkwise", [False, True])
async def test_scores_have_one_however_many_they_are(engine: FakeEngine, media: str, chunkwise: bool) -> None:
    request = ask(2, 60, groups=200, top_k=8) if chunkwise else REQUEST
    wire = wire_json if media == MEDIA_JSON else wire_tensors
    async with serving(engine) as client:
        answer = await client.post(
            "/v1/logprobs", content=wire.encode_request(request), headers={"Content-Type": media}
        )
    assert answer.status_code == 200
    assert (len(answer.content) > CHUNK) is chunkwise
    assert answer.headers[HEADER] == header_of([answer.content])


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/logprobs", "/v1/completions", "/tokenize"])
async def test_a_body_that_changed_on_the_way_is_refused_and_not_computed(engine: FakeEngine, path: str) -> None:
    body = wire_json.encode_request(REQUEST)
    async with serving(engine) as client:
        answer = await client.post(path, content=body, headers={**JSON, HEADER: header_of([body[:-1] + b" "])})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "digest_mismatch")
    assert answer.json()["error"]["param"] == HEADER
    assert not engine.batches


@pytest.mark.anyio
async def test_a_packed_body_has_the_digest_of_what_is_sent(engine: FakeEngine) -> None:
    plain = wire_json.encode_request(REQUEST)
    packed = gzip.compress(plain)
    headers = {**JSON, "Content-Encoding": "gzip"}
    async with serving(engine) as client:
        right = await client.post("/v1/logprobs", content=packed, headers={**headers, HEADER: header_of([packed])})
        wrong = await client.post("/v1/logprobs", content=packed, headers={**headers, HEADER: header_of([plain])})
    assert (right.status_code, wrong.status_code) == (200, 400)


class Flipping(httpx.HTTPTransport):
    """Flips one bit of every request and answer but each third: of the request's body, then of the answer's."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._turns = itertools.cycle(("request", "answer", "neither"))
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            turn = next(self._turns)
        if turn == "request":
            content = self._flipped(request.read())
            request = httpx.Request(request.method, request.url, headers=request.headers, content=content)
        response = super().handle_request(request)
        if turn == "answer":
            content = self._flipped(response.read())
            return httpx.Response(response.status_code, headers=response.headers, content=content)
        return response

    def _flipped(self, body: bytes) -> bytes:
        changed = bytearray(body)
        if changed:
            changed[self._rng.randrange(len(body))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)


@pytest.mark.parametrize("encoding", ["tensors", "json"])
def test_a_flipped_bit_is_never_a_number(encoding) -> None:
    engine = FakeEngine()
    with (
        real_server(engine) as url,
        ReferenceClient(
            url, encoding=encoding, transport=Flipping(random.Random(0)), sleep=lambda seconds: None
        ) as client,
    ):
        right = expected(REQUEST, engine.info.fingerprint)
        for _ in range(100):
            np.testing.assert_array_equal(client.score_request(REQUEST).logprobs, right)


@pytest.mark.anyio
async def test_a_piece_of_a_file_that_changed_on_the_way_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    admin = {"Authorization": "Bearer root"}
    files = [{"name": n, "size": 6, "sha256": "0" * 64} for n in ("config.json", "model.safetensors")]
    async with serving(FakeEngine(), upload_dir=tmp_path / "up") as client:
        id = (await client.post("/admin/uploads", json={"files": files}, headers=admin)).json()["id"]
        url = f"/admin/uploads/{id}/model.safetensors"
        told = {**admin, HEADER: header_of([b"abc"])}
        kept = await client.put(url, content=b"abc", headers=told)
        changed = await client.put(url, content=b"abd", headers={**told, "Upload-Offset": "3"})
        places = (await client.get(f"/admin/uploads/{id}", headers=admin)).json()["files"]
    assert kept.json()["offset"] == 3
    assert (changed.status_code, changed.json()["error"]["code"]) == (400, "digest_mismatch")
    assert [file["offset"] for file in places] == [0, 3]
