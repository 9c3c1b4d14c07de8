"""Bringing a model over HTTP: pieces, offsets, hashes, and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpo_server.uploading import area as area_module
from grpo_server.uploading.area import UploadArea
from grpo_server.uploading.manifest import Manifest
from server_fakes import serving
from uploaded_models import ADMIN, WEIGHTS, WeightsEngine, manifest, model

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(WeightsEngine("first"), upload_dir=tmp_path / "up", max_upload_bytes=1000) as client:
        client.headers.update(ADMIN)
        yield client


async def begun(client: httpx.AsyncClient, files: dict[str, bytes]) -> str:
    answer = await client.post("/admin/uploads", json=manifest(files))
    assert answer.status_code in (200, 201), answer.text
    return answer.json()["id"]


async def bring(client: httpx.AsyncClient, files: dict[str, bytes]) -> str:
    """A whole upload; the model to name."""
    id = await begun(client, files)
    for name, data in files.items():
        assert (await client.put(f"/admin/uploads/{id}/{name}", content=data)).json()["complete"]
    return (await client.get(f"/admin/uploads/{id}")).json()["model"]


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_pieces_are_appended_and_the_last_one_completes_the_file(server: httpx.AsyncClient) -> None:
    first = await server.post("/admin/uploads", json=manifest(model()))
    id = first.json()["id"]
    assert first.status_code == 201
    assert first.headers["Location"] == f"/admin/uploads/{id}"
    assert [file["offset"] for file in first.json()["files"]] == [0, 0]
    url = f"/admin/uploads/{id}/{WEIGHTS}"
    half = await server.put(url, content=b"sec", headers={"Content-Range": "bytes 0-2/6"})
    assert half.json() == {"name": WEIGHTS, "size": 6, "offset": 3, "complete": False}
    assert (half.headers["Upload-Offset"], half.headers["Upload-Complete"]) == ("3", "?0")
    again = await server.post("/admin/uploads", json=manifest(model()))
    assert (again.status_code, again.json()["files"][1]["offset"]) == (200, 3)
    whole = await server.put(url, content=b"ond", headers={"Upload-Offset": "3"})
    assert whole.json()["complete"]
    assert whole.headers["Upload-Complete"] == "?1"
    assert not (await server.get(f"/admin/uploads/{id}")).json()["complete"]
    assert [upload["id"] for upload in (await server.get("/admin/uploads")).json()] == [id]


@pytest.mark.parametrize(
    "headers",
    [{"Upload-Offset": "2"}, {"Content-Range": "bytes 2-4/6"}, {"Content-Range": "bytes 2-4/*", "Upload-Offset": "2"}],
)
async def test_a_wrong_offset_is_told_the_right_one(server: httpx.AsyncClient, headers: dict[str, str]) -> None:
    id = await begun(server, model())
    await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=b"s")
    refused = await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=b"con", headers=headers)
    assert code(refused) == (409, "upload_offset")
    assert refused.headers["Upload-Offset"] == "1"
    assert (await server.get(f"/admin/uploads/{id}")).json()["files"][1]["offset"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": "bytes=0-2"},
        {"Content-Range": "bytes 0-2/7"},
        {"Content-Range": "bytes 2-0/6"},
        {"Content-Range": "bytes 0-4/6"},
        {"Content-Range": "bytes 0-2/6", "Upload-Offset": "1"},
        {"Upload-Offset": "-1"},
        {"Upload-Offset": "1e3"},
    ],
)
async def test_headers_that_say_two_things_are_refused(server: httpx.AsyncClient, headers: dict[str, str]) -> None:
    id = await begun(server, model())
    refused = await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=b"sec", headers=headers)
    assert code(refused) == (400, "malformed_request")


async def test_a_flipped_byte_is_refused_by_name_and_the_file_begins_anew(
    server: httpx.AsyncClient, tmp_path: Path
) -> None:
    id = await begun(server, model())
    refused = await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=b"secOnd")
    assert code(refused) == (422, "hash_mismatch")
    assert refused.json()["error"]["param"] == WEIGHTS
    status = (await server.get(f"/admin/uploads/{id}")).json()
    assert (status["files"][1]["offset"], status["files"][1]["complete"]) == (0, False)
    assert list((tmp_path / "up" / id / "files").iterdir()) == []
    assert code(await server.post("/admin/reference", json={"model": f"upload:{id}"})) == (422, "model_unavailable")
    assert (await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=b"second")).json()["complete"]


@pytest.mark.parametrize(
    "name",
    [
        "../config.json", "/etc/passwd.safetensors", "a/b.safetensors", "..", ".safetensors", "a\\b.safetensors", "", "x" * 300,
        "pytorch_model.bin", "model.pt", "model.pkl", "modeling.py", "adapter_config.json", "m.safetensors\n",
        "a\0.safetensors", "ｍ.safetensors", "config.json/../x.safetensors", "optimizer.pt", "CONFIG.JSON",
    ],
)  # fmt: skip
async def test_names_that_are_no_models_file_are_refused(server: httpx.AsyncClient, tmp_path: Path, name: str) -> None:
    refused = await server.post("/admin/uploads", json=manifest({**model(), name: b"x"}))
    assert code(refused) == (422, "invalid_value")
    assert refused.json()["error"]["param"] == "files[2].name"
    assert {p.name for p in (tmp_path / "up").iterdir()} == {"lock"}


async def test_what_is_no_model_or_too_large_or_not_promised_is_refused(server: httpx.AsyncClient) -> None:
    for files in ({"config.json": b"{}"}, {WEIGHTS: b"x"}):
        assert code(await server.post("/admin/uploads", json=manifest(files))) == (422, "invalid_value")
    twice = manifest(model())
    twice["files"] *= 2
    assert code(await server.post("/admin/uploads", json=twice)) == (422, "invalid_value")
    assert code(await server.post("/admin/uploads", json=manifest(model("x" * 999)))) == (413, "body_too_large")
    for fault in ({"size": -1}, {"size": 1.5}, {"sha256": "A" * 64}, {"sha256": "0" * 63}, {"more": 1}):
        broken: Any = manifest(model())
        broken["files"][0] |= fault
        assert code(await server.post("/admin/uploads", json=broken)) == (400, "malformed_request")
    id = await begun(server, model())
    assert code(await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=b"seconds")) == (413, "body_too_large")
    packed = {"Content-Encoding": "gzip"}
    refused = await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=b"second", headers=packed)
    assert code(refused) == (415, "unsupported_media_type")
    for path in (f"{id}/tokenizer.json", f"{id}/..%2Fmanifest.json", f"{'0' * 32}/{WEIGHTS}", f"..%2F{id}/{WEIGHTS}"):
        assert code(await server.put(f"/admin/uploads/{path}", content=b"x"))[0] == 404
    assert (await server.get(f"/admin/uploads/{id}")).json()["files"][1]["offset"] == 0


async def test_more_than_was_said_in_chunks_is_not_written(server: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"sec"
        yield b"onds"

    id = await begun(server, model())
    assert code(await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=chunks())) == (413, "body_too_large")
    assert (await server.get(f"/admin/uploads/{id}")).json()["files"][1]["offset"] == 3


async def test_a_piece_may_be_larger_than_any_other_body(tmp_path: Path) -> None:
    files = model("w" * 3_000_000)
    async with serving(WeightsEngine(), upload_dir=tmp_path, max_request_bytes=1000, max_queue_bytes=2000) as client:
        client.headers.update(ADMIN)
        await bring(client, files)


async def test_without_the_admin_key_nothing_is_told_or_taken(server: httpx.AsyncClient, tmp_path: Path) -> None:
    id = await begun(server, model())
    for method, path in (
        ("POST", ""),
        ("GET", ""),
        ("GET", f"/{id}"),
        ("DELETE", f"/{id}"),
        ("PUT", f"/{id}/{WEIGHTS}"),
    ):
        for key in ("", "Bearer wrong"):
            answer = await server.request(
                method, f"/admin/uploads{path}", headers={"Authorization": key}, content=b"second"
            )
            assert answer.status_code == 401
    assert list((tmp_path / "up" / id / "parts").iterdir()) == []


async def test_without_a_directory_there_are_no_uploads() -> None:
    async with serving(WeightsEngine()) as client:
        client.headers.update(ADMIN)
        assert code(await client.post("/admin/uploads", json=manifest(model()))) == (404, "not_found")
        refused = await client.post("/admin/reference", json={"model": f"upload:{'0' * 32}"})
    assert code(refused) == (403, "source_forbidden")


async def test_what_does_not_fit_the_disk_is_not_begun(
    server: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(area_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))  # pyright: ignore
    first = await server.post("/admin/uploads", json=manifest(model()))
    assert first.status_code == 201
    refused = await server.post("/admin/uploads", json=manifest(model("third")))  # 7 bytes beside the 8 promised
    assert code(refused) == (507, "insufficient_storage")


async def test_a_disk_that_fills_up_is_told_and_gone_on_from(
    server: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def write_two(file: int, data: Any) -> int:
        if os.fstat(file).st_size >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, bytes(data[:2]))

    id = await begun(server, model())
    with monkeypatch.context() as full:
        full.setattr(os, "write", write_two)
        refused = await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=b"second")
    assert code(refused) == (507, "insufficient_storage")
    assert refused.headers["X-Should-Retry"] == "false"
    url = f"/admin/uploads/{id}/{WEIGHTS}"
    assert (await server.put(url, content=b"cond", headers={"Upload-Offset": "2"})).json()["complete"]


async def test_two_uploads_go_on_at_once(server: httpx.AsyncClient) -> None:
    one, two = model("one"), model("two")
    first, second = await begun(server, one), await begun(server, two)
    assert first != second
    for id, data in ((first, b"o"), (second, b"t")):
        await server.put(f"/admin/uploads/{id}/{WEIGHTS}", content=data)
    for id, data in ((second, b"wo"), (first, b"ne")):
        url = f"/admin/uploads/{id}/{WEIGHTS}"
        assert (await server.put(url, content=data, headers={"Upload-Offset": "1"})).json()["complete"]


async def test_a_dropped_one_is_gone(server: httpx.AsyncClient) -> None:
    id = await begun(server, model())
    assert (await server.delete(f"/admin/uploads/{id}")).status_code == 204
    for answer in (await server.get(f"/admin/uploads/{id}"), await server.delete(f"/admin/uploads/{id}")):
        assert code(answer) == (404, "not_found")


def test_the_abandoned_go_by_age_and_what_others_put_there_stays(tmp_path: Path) -> None:
    now = [1e9]
    area = UploadArea(tmp_path, 1000, 60, lambda: now[0])
    upload, _ = area.create(Manifest.model_validate(manifest(model())))
    for path in (upload.path, *upload.path.rglob("*")):
        os.utime(path, (1e9, 1e9))
    (tmp_path / "models").mkdir()
    (tmp_path / ".upload-new-1").mkdir()
    now[0] += 60
    area.close()
    UploadArea(tmp_path, 1000, 60, lambda: now[0]).close()
    assert {p.name for p in tmp_path.iterdir()} == {"lock", "models", upload.id}
    now[0] += 1
    UploadArea(tmp_path, 1000, 60, lambda: now[0]).close()
    assert upload.id not in {p.name for p in tmp_path.iterdir()}


def test_a_directory_has_one_server(tmp_path: Path) -> None:
    area = UploadArea(tmp_path, 1000, 60)
    with pytest.raises(ValueError, match="in use by another server"):
        UploadArea(tmp_path, 1000, 60)
    area.close()


def test_bytes_of_a_process_that_was_killed_count(tmp_path: Path) -> None:
    promised = Manifest.model_validate(manifest(model()))
    if not (child := os.fork()):
        upload, _ = UploadArea(tmp_path, 1000, 60).create(promised)
        os.write(upload.open_part(WEIGHTS), b"sec")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    area = UploadArea(tmp_path, 1000, 60)
    upload, new = area.create(promised)
    assert not new
    assert upload.status_of(WEIGHTS).offset == 3
    area.close()
