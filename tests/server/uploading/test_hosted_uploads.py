"""A swap or a mix from an upload: what is hosted, what a restart finds, and when the upload goes."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from grpo_server.app import create_app
from grpo_server.swapping.resume import resumed
from grpo_server.swapping.state import StateDir
from server_fakes import fingerprint, make_config, real_server, running, serving
from test_uploads import bring, code
from uploaded_models import ADMIN, WEIGHTS, WeightsEngine, manifest, model

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")


async def swap(client: httpx.AsyncClient, model: str) -> httpx.Response:
    return await client.post("/admin/reference", json={"model": model})


async def there(client: httpx.AsyncClient) -> list[str]:
    return [upload["model"] for upload in (await client.get("/admin/uploads")).json()]


async def test_an_upload_is_hosted_and_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    settings = {"upload_dir": tmp_path / "up", "swap_root": tmp_path / "root"}
    async with serving(WeightsEngine("first"), **settings) as client:
        client.headers.update(ADMIN)
        second = await bring(client, model("second"))
        assert (await swap(client, second)).json()["fingerprint"] == fingerprint("second")
        assert await there(client) == [second]
        third = await bring(client, model("third"))
        assert (await swap(client, third)).json()["version"] == 3
        assert await there(client) == [third]
        fourth = await bring(client, model("fourth"))
        mixed = await client.post("/admin/reference/ema", json={"model": fourth, "decay": 0.5})
        assert mixed.json()["fingerprint"] == fingerprint("third+fourth")
        assert await there(client) == []
        assert code(await swap(client, third)) == (404, "not_found")


async def test_a_model_that_is_refused_may_be_asked_for_again(tmp_path: Path) -> None:
    async with serving(WeightsEngine("first"), upload_dir=tmp_path) as client:
        client.headers.update(ADMIN)
        broken = await bring(client, model("missing"))
        assert code(await swap(client, broken)) == (422, "model_unavailable")
        assert (await client.get("/v1/reference")).json()["fingerprint"] == fingerprint("first")
        assert await there(client) == [broken]


async def test_it_is_not_removed_while_it_is_read(tmp_path: Path) -> None:
    engine = WeightsEngine("first")
    async with serving(engine, upload_dir=tmp_path) as client:
        client.headers.update(ADMIN)
        second = await bring(client, model())
        engine.hold_change()
        assert (await client.post("/admin/reference", json={"model": second, "wait": False})).status_code == 202
        await engine.entered()
        assert code(await client.delete(f"/admin/uploads/{second[7:]}")) == (409, "upload_busy")
        engine.let_go()


async def test_a_restart_serves_it_without_the_upload(tmp_path: Path) -> None:
    config = make_config(upload_dir=tmp_path / "up")
    app = create_app(config, lambda: WeightsEngine("first"), state=StateDir(tmp_path / "state"))
    async with running(app) as client:
        client.headers.update(ADMIN)
        second = await bring(client, model())
        assert (await swap(client, second)).status_code == 200
        assert (await client.delete(f"/admin/uploads/{second[7:]}")).status_code == 204
    state = StateDir(tmp_path / "state")
    told = resumed(config, state)
    assert (told.name, told.version) == (second, 2)
    assert {p.name: p.read_bytes() for p in Path(told.model).iterdir()} == model()
    state.close()


async def test_the_upload_of_the_hosted_one_stays_over_a_restart_and_goes_with_the_next(tmp_path: Path) -> None:
    config = make_config(upload_dir=tmp_path / "up")
    for weights in ("second", "third"):
        app = create_app(config, lambda: WeightsEngine("first"), state=StateDir(tmp_path / "state"))
        async with running(app) as client:
            client.headers.update(ADMIN)
            brought = await bring(client, model(weights))
            assert (await swap(client, brought)).status_code == 200
            assert await there(client) == [brought]


async def test_a_cut_in_the_middle_is_gone_on_from_after_a_restart(tmp_path: Path) -> None:
    weights = "w" * 5_000_000
    files = model(weights)
    with real_server(WeightsEngine("first"), upload_dir=tmp_path) as url, httpx.Client(headers=ADMIN) as http:
        id = http.post(f"{url}/admin/uploads", json=manifest(files)).json()["id"]
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            head = f"PUT /admin/uploads/{id}/{WEIGHTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer root\r\n"
            raw.sendall(f"{head}Content-Length: {len(weights)}\r\n\r\n".encode() + files[WEIGHTS][:2_000_000])
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(10)
            while raw.recv(2**16):  # until the server has seen that it is over
                pass
    with real_server(WeightsEngine("first"), upload_dir=tmp_path) as url, httpx.Client(headers=ADMIN) as http:
        upload = f"{url}/admin/uploads/{id}"
        offset = http.get(upload).json()["files"][1]["offset"]
        assert offset == 2_000_000
        rest = {"Content-Range": f"bytes {offset}-{len(weights) - 1}/{len(weights)}"}
        assert http.put(f"{upload}/{WEIGHTS}", content=files[WEIGHTS][offset:], headers=rest).json()["complete"]
        assert http.put(f"{upload}/config.json", content=b"{}").json()["complete"]
        moved = http.post(f"{url}/admin/reference", json={"model": f"upload:{id}"})
        assert moved.json()["fingerprint"] == fingerprint(weights)
