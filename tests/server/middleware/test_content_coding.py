"""Packed bodies: unpacked on every route, within the limit of a plain body, or refused by name."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from grpo_client import wire_tensors
from grpo_client.protocol import MEDIA_TENSORS
from grpo_server.middleware.bodies import coding as content_coding
from grpo_server.middleware.bodies.coding import CorruptBody, chunks
from server_fakes import FakeEngine, ask, serving

MIB = 2**20
BODY = {"groups": [{"prompt": [1], "completions": [[2]]}]}
PLAIN = json.dumps(BODY).encode()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "gzip, upper case": ("GZIP", gzip.compress),
    "gzip in two members": ("gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "gzip beside identity": ("identity, gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", raw_deflate),
}
if (zstd := content_coding._zstd_module()) is not None:
    PACKERS["zstd"] = ("zstd", zstd.compress)
    PACKERS["zstd in two frames"] = ("zstd", lambda data: zstd.compress(data[:9]) + zstd.compress(data[9:]))
packed = pytest.mark.parametrize(("coding", "pack"), PACKERS.values(), ids=PACKERS)


@packed
def test_what_was_packed_comes_out(coding: str, pack: Callable[[bytes], bytes]) -> None:
    name = coding.lower().removeprefix("identity, ")
    data = bytes(range(256)) * 5000
    got = list(chunks(pack(data), name, 1000))
    assert b"".join(got) == data
    assert max(map(len, got)) <= 1000
    assert list(chunks(pack(b""), name, 1000)) == []


@packed
def test_what_breaks_off_or_is_something_else_is_told(coding: str, pack: Callable[[bytes], bytes]) -> None:
    name = coding.lower().removeprefix("identity, ")
    whole = pack(b"some text " * 50)
    for broken in (whole[:-1], whole[: len(whole) // 2], b"", b"\x00\xff" * 20, whole + b"?"):
        with pytest.raises(CorruptBody):
            list(chunks(broken, name, 1000))


@packed
def test_a_bomb_costs_what_is_asked_for(coding: str, pack: Callable[[bytes], bytes]) -> None:
    name = coding.lower().removeprefix("identity, ")
    bomb = pack(b"\0" * (256 * MIB))
    tracemalloc.start()
    try:
        unpacking = chunks(bomb, name, MIB)
        assert sum(len(next(unpacking)) for _ in range(3)) > MIB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


def test_members_without_end_are_refused() -> None:
    """An empty gzip member takes 20 bytes and a decoder of its own."""
    with pytest.raises(CorruptBody, match="members"):
        list(chunks(gzip.compress(b"") * 100_000, "gzip", 1000))
    blocks = [random.Random(n).randbytes(2000) for n in range(64)]  # as bgzip writes them
    assert b"".join(chunks(b"".join(map(gzip.compress, blocks)) * 2, "gzip", 1000)) == b"".join(blocks) * 2


@pytest.mark.skipif("zstd" not in PACKERS, reason="no zstd in this Python")
def test_a_zstd_window_that_is_larger_than_http_allows_is_refused() -> None:
    assert zstd is not None
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.checksum_flag: 1}
    packer = zstd.ZstdCompressor(options=options)  # a stream: its size is not known, so that the window stays as asked
    wide = packer.compress(b"x") + packer.flush()
    with pytest.raises(CorruptBody):
        list(chunks(wide, "zstd", 1000))


ROUTES: list[tuple[str, Any]] = [
    ("/v1/logprobs", BODY),
    ("/tokenize", {"prompt": "text"}),
    ("/detokenize", {"tokens": [1, 2]}),
    ("/v1/completions", {"model": "fake", "prompt": [1, 2], "max_tokens": 0, "echo": True, "logprobs": 0}),
]


@pytest.mark.anyio
@packed
@pytest.mark.parametrize(("path", "message"), ROUTES, ids=[path for path, _ in ROUTES])
async def test_every_route_takes_it(
    engine: FakeEngine, coding: str, pack: Callable[[bytes], bytes], path: str, message: Any
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    async with serving(engine) as client:
        plain = await client.post(path, json=message)
        response = await client.post(path, content=pack(json.dumps(message).encode()), headers=headers)
    assert (plain.status_code, response.status_code) == (200, 200), response.text
    assert response.json().keys() == plain.json().keys()


@pytest.mark.anyio
async def test_tensors_are_unpacked_as_well(engine: FakeEngine) -> None:
    body = wire_tensors.encode_request(ask(3, 2, 1))
    headers = {"Content-Type": MEDIA_TENSORS}
    async with serving(engine) as client:
        plain = await client.post("/v1/logprobs", content=body, headers=headers)
        sent = await client.post(
            "/v1/logprobs", content=gzip.compress(body), headers={**headers, "Content-Encoding": "gzip"}
        )
    assert (
        wire_tensors.decode_result(sent.content).logprobs.tolist()
        == wire_tensors.decode_result(plain.content).logprobs.tolist()
    )


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/logprobs", "/tokenize", "/admin/reference", "/v2/models/fake/infer"])
@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "gzip;q=1", "aes128gcm", "x" * 5000])
async def test_what_is_not_unpacked_is_a_415_that_names_what_is(
    engine: FakeEngine, path: str, coding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    headers = {"Content-Type": "application/json", "Content-Encoding": coding, "Authorization": "Bearer root"}
    async with serving(engine) as client:
        response = await client.post(path, content=PLAIN, headers=headers)
    assert response.status_code == 415
    assert "gzip, deflate" in response.text
    assert response.headers["accept-encoding"].startswith("gzip, deflate")
    assert len(response.text) < 1000


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/logprobs", "/tokenize"])
async def test_a_bomb_is_a_413_and_a_broken_body_a_400(engine: FakeEngine, path: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with serving(engine, max_request_bytes=100_000) as client:
        bomb = await client.post(path, content=gzip.compress(b" " * 20_000_000), headers=headers)
        broken = await client.post(path, content=gzip.compress(PLAIN)[:-9], headers=headers)
        padded = await client.post("/v1/logprobs", content=gzip.compress(PLAIN.ljust(100_000)), headers=headers)
        over = await client.post("/v1/logprobs", content=gzip.compress(PLAIN.ljust(100_001)), headers=headers)
    assert (bomb.status_code, bomb.json()["error"]["code"]) == (413, "body_too_large")
    assert "--max-request-bytes" in bomb.json()["error"]["message"]
    assert (broken.status_code, broken.json()["error"]["param"]) == (400, "Content-Encoding")
    assert (padded.status_code, over.status_code) == (200, 413)
