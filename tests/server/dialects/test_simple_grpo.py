"""simple_GRPO's /upload and /get, byte by byte as its generator and its trainer speak them."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bigram_engine import BigramEngine
from grpo_server.errors import ServiceError
from grpo_server.routes.dialects.simple_grpo.shelf import Shelf
from server_fakes import CURSED, serving

pytestmark = pytest.mark.anyio

PLEN = 2
INPUTS = torch.tensor([[20, 31, 42, 53, 20], [20, 31, 7, 8, 8]])
REWARDS = torch.tensor([1.0, -1.0])
GEN = torch.zeros(2, 3)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def frame(*parts: bytes) -> bytes:
    return struct.pack(">I", len(parts)) + b"".join(struct.pack(">I", len(p)) + p for p in parts)


def unframe(body: bytes) -> Iterator[bytes]:
    end = 4
    for _ in range(struct.unpack_from(">I", body)[0]):
        start, end = end + 4, end + 4 + struct.unpack_from(">I", body, end)[0]
        yield body[start:end]
    assert end == len(body)


def upload(base: Any = None, inputs: Any = INPUTS, rewards: Any = REWARDS, *more: Any) -> bytes:
    base = {"plen": PLEN, "note": "kept"} if base is None else base
    return frame(
        json.dumps(base).encode(), *(p if isinstance(p, bytes) else saved(p) for p in (inputs, rewards, *more))
    )


@pytest.mark.parametrize("gen_logps", [(), (GEN,)])
async def test_an_upload_comes_back_scored(engine: BigramEngine, gen_logps: tuple[Any, ...]) -> None:
    async with serving(engine, simple_grpo=True) as client:
        assert (await client.get("/get")).content == b"empty"
        assert (await client.post("/upload", content=upload(None, INPUTS, REWARDS, *gen_logps))).content == b"tensor"
        framed = (await client.get("/get")).content
        assert (await client.get("/get")).content == b"empty"
    base, *blobs = unframe(framed)
    assert json.loads(base) == {"plen": PLEN, "note": "kept"}
    inputs, rewards, refs, *rest = (torch.load(io.BytesIO(b), weights_only=True) for b in blobs)
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(rewards, REWARDS)
    assert refs.dtype == torch.float32
    assert refs.tolist() == [engine.logprobs(row, start=PLEN) for row in INPUTS.tolist()]
    assert len(rest) == len(gen_logps)
    [[piece]] = engine.batches
    assert piece.prompt.tolist() == [20, 31]  # once for the whole group


async def test_first_in_first_out_and_temperature(engine: BigramEngine) -> None:
    async with serving(engine, simple_grpo=True) as client:
        for temperature in (0.5, 2.0):
            await client.post("/upload", content=upload({"plen": PLEN, "temperature": temperature}))
        framed = [(await client.get("/get")).content for _ in range(2)]
    for body, temperature in zip(framed, (0.5, 2.0), strict=True):
        base, _, _, refs = unframe(body)
        assert json.loads(base)["temperature"] == temperature
        assert torch.load(io.BytesIO(refs), weights_only=True)[0].tolist() == engine.logprobs(
            INPUTS[0].tolist(), temperature, start=PLEN
        )


async def test_what_is_not_finite_stays_so(engine: BigramEngine) -> None:
    inputs = INPUTS.clone()
    inputs[1, 3] = CURSED
    async with serving(engine, simple_grpo=True) as client:
        await client.post("/upload", content=upload(None, inputs))
        *_, refs = unframe((await client.get("/get")).content)
    assert torch.load(io.BytesIO(refs), weights_only=True).isnan().nonzero().tolist() == [[1, 1]]


async def test_it_is_off_unless_asked_for(engine: BigramEngine) -> None:
    async with serving(engine) as client:
        for response in (await client.post("/upload", content=upload()), await client.get("/get")):
            assert response.status_code == 404
            assert "--simple-grpo" in response.json()["error"]["message"]


class Evil:
    """Unpickles to a call of print."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def bomb() -> bytes:
    """A torch file whose members are compressed: megabytes that take kilobytes."""
    buffer = io.BytesIO()
    plain = zipfile.ZipFile(io.BytesIO(saved(torch.zeros(1 << 18, 1, dtype=torch.int64))))
    with plain, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    return buffer.getvalue()


BROKEN = {
    "nothing": b"",
    "no frame": b"hello, this is not a frame",
    "cut off": upload()[:-3],
    "too long": upload() + b"x",
    "two parts": frame(b"{}", saved(INPUTS)),
    "no JSON": frame(b"{", saved(INPUTS), saved(REWARDS)),
    "no plen": upload({}),
    "plen is text": upload({"plen": "2"}),
    "plen beyond": upload({"plen": 6}),
    "plen zero": upload({"plen": 0}),
    "no tensor file": upload(None, b"abc"),
    "plain pickle": upload(None, pickle.dumps([1, 2])),
    "code": upload(None, saved(Evil())),
    "a list": upload(None, saved([1, 2])),
    "sparse": upload(None, INPUTS.to_sparse()),
    "floats": upload(None, INPUTS.float()),
    "one row": upload(None, INPUTS[0]),
    "bomb": upload(None, bomb()),
    "a view of few bytes": upload(None, torch.zeros(1, 1, dtype=torch.int64).expand(1 << 15, 1 << 15)),
    "rewards too many": upload(None, INPUTS, torch.zeros(3)),
    "gen_logps of another shape": upload(None, INPUTS, REWARDS, torch.zeros(2, 4)),
    "negative id": upload(None, -INPUTS),
    "nan temperature": upload({"plen": 2, "temperature": "hot"}),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_upload_is_refused_and_nothing_of_it_runs(
    engine: BigramEngine, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(engine, simple_grpo=True) as client:
        response = await client.post("/upload", content=BROKEN[what])
        assert response.status_code == 400, response.text
        assert (await client.get("/get")).content == b"empty"
        assert (await client.post("/upload", content=upload())).content == b"tensor"  # nothing stays reserved
    assert "unpickled" not in capsys.readouterr().out


async def test_an_impossible_upload_gives_its_room_back(engine: BigramEngine) -> None:
    room = len(upload()) + 24 + 4096  # for one upload and its refs, as the route prices them
    async with serving(engine, simple_grpo=True, max_queue_bytes=room) as client:
        assert (await client.post("/upload", content=upload(None, INPUTS + 60))).status_code == 422
        assert (await client.post("/upload", content=upload())).content == b"tensor"
        assert (await client.get("/get")).content != b"empty"
        assert (await client.post("/upload", content=upload())).content == b"tensor"
        too_large = await client.post("/upload", content=upload(None, INPUTS.repeat(500, 1), torch.zeros(1000)))
    assert too_large.status_code == 413


async def test_the_shelf_waits_for_room_and_then_refuses() -> None:
    shelf = Shelf(10, patience=60)
    await shelf.reserve(8)
    shelf.put(b"12345678", {"who": "a"})
    waiting = asyncio.create_task(shelf.reserve(8))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await shelf.take() == (b"12345678", {"who": "a"})
    await waiting
    impatient = Shelf(10, patience=0.01)
    await impatient.reserve(8)
    with pytest.raises(ServiceError) as refused:
        await impatient.reserve(8)
    assert refused.value.status == 503
    assert refused.value.retry_after
    with pytest.raises(ServiceError) as refused:
        await impatient.reserve(11)
    assert refused.value.status == 413


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


BOMBS = {
    "long JSON": (json.dumps({"plen": 2, "note": "x" * 2**20}).encode(), saved(INPUTS), 413, "part 1"),
    "deep JSON": (b"[" * 100_000, saved(INPUTS), 400, "part 1"),
    "long number": (b'{"plen": ' + b"9" * 100_000 + b"}", saved(INPUTS), 400, "part 1"),
    "not JSON": (b'{"plen": 2', saved(INPUTS), 400, "part 1"),
    "many members": (b'{"plen": 2}', archive({f"a/data/{i}": b"" for i in range(65)}), 400, "inputs"),
    "a long pickle": (b'{"plen": 2}', archive({"a/data.pkl": b"N0" * 2**16, "a/data/0": b""}), 400, "inputs"),
    "a long pickle beside data": (b'{"plen": 2}', archive({"data/data.pkl": b"N0" * 2**16}), 400, "inputs"),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_what_is_dear_to_read_is_refused_unread(
    engine: BigramEngine, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, inputs, status, param = BOMBS[bomb]
    opened: list[object] = []
    load, infolist = torch.load, zipfile.ZipFile.infolist
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: opened.append(args) or load(*args, **kwargs))
    if bomb == "many members":
        monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda self: opened.append(self) or infolist(self))
    async with serving(engine, simple_grpo=True) as client:
        refused = await client.post("/upload", content=frame(base, inputs, saved(REWARDS)))
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (status, param)
        assert len(error["message"]) < 300
        assert opened == []
        assert (await client.post("/upload", content=upload())).status_code == 200
