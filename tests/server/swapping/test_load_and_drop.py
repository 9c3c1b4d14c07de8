"""References that come and go while a server serves: over HTTP with fake engines that read files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from file_engine import checkpoint
from grpo_client import AsyncReferenceClient, wire_json
from grpo_client.errors import NotFound, RequestRefused
from grpo_server.lifecycle import Service
from grpo_server.swapping.state import StateDir
from server_fakes import FakeEngine, ask, fingerprint, running
from test_named_swaps import ADMIN, app_of, hosted, of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")


async def load(client: httpx.AsyncClient, name: str, source: Path, **more: Any) -> httpx.Response:
    return await client.post("/v1/references", json={"name": name, "source": str(source), **more}, headers=ADMIN)


async def drop(client: httpx.AsyncClient, name: str) -> httpx.Response:
    return await client.delete(f"/v1/references/{name}", headers=ADMIN)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_one_is_loaded_asked_and_dropped(tmp_path: Path) -> None:
    checkpoint(tmp_path / "more", "more")
    async with running(app_of(of(tmp_path, a="first"))) as client:
        loaded = (await load(client, "b", tmp_path / "more")).json()
        assert (loaded["model"], loaded["version"], loaded["fingerprint"]) == ("b", 1, fingerprint("more"))
        assert list(await hosted(client)) == ["a", "b"]
        assert 'grpo_server_hosted_ready{reference="b"} 1.0' in (await client.get("/metrics")).text
        assert code(await load(client, "b", tmp_path / "more")) == (422, "invalid_value")
        assert (await drop(client, "b")).json() == {"name": "b"}
        assert list(await hosted(client)) == ["a"]
        assert 'reference="b"' not in (await client.get("/metrics")).text
        assert code(await drop(client, "b")) == (404, "model_not_found")
        assert code(await drop(client, "a")) == (422, "invalid_value")


async def test_what_cannot_be_loaded_leaves_everything_as_it_was(tmp_path: Path) -> None:
    checkpoint(tmp_path / "bad", "missing")
    app = app_of(of(tmp_path, a="first"), StateDir(tmp_path / "state"))
    async with running(app) as client:
        assert code(await load(client, "b", tmp_path / "bad")) == (422, "model_unavailable")
        assert code(await load(client, "b", tmp_path / "nowhere")) == (422, "model_unavailable")
        assert code(await load(client, "b", tmp_path / "bad", base="c")) == (404, "model_not_found")
        assert (await load(client, "../b", tmp_path / "bad")).status_code in (400, 422)
        service: Service = app.state.service
        service.references.default.engine.no_room = "9 GiB would be needed"  # pyright: ignore
        refused = await load(client, "b", tmp_path / "first")
        assert code(refused) == (422, "model_unavailable")
        assert "does not fit into memory" in refused.json()["error"]["message"]
        assert list(await hosted(client)) == ["a"]
    assert not (tmp_path / "state" / "named" / "b").exists()


async def test_what_was_accepted_before_the_drop_is_answered(tmp_path: Path) -> None:
    app = app_of(of(tmp_path, a="first", b="second"))
    async with running(app) as client:
        service: Service = app.state.service
        engine = service.references.named("b").engine
        assert isinstance(engine, FakeEngine)
        engine.hold()
        body = wire_json.encode_request(ask(4, 3, model="b"))
        headers = {"Content-Type": "application/json"}
        asked = asyncio.create_task(client.post("/v1/logprobs", content=body, headers=headers))
        await engine.entered()
        dropping = asyncio.create_task(drop(client, "b"))
        while len(service.references) == 2:
            await asyncio.sleep(0)
        assert code(await client.post("/v1/logprobs", content=body, headers=headers)) == (404, "model_not_found")
        assert not engine.closed
        engine.let_go()
        assert (await asked).json()["reference"]["fingerprint"] == fingerprint("second")
        assert (await dropping).status_code == 200
        assert engine.closed


async def test_a_restart_has_what_was_loaded_and_not_what_was_dropped(tmp_path: Path) -> None:
    for name in ("more", "gone"):
        checkpoint(tmp_path / name, name)
    config = of(tmp_path, a="first")
    async with running(app_of(config, StateDir(tmp_path / "state"))) as client:
        await load(client, "b", tmp_path / "more")
        await load(client, "c", tmp_path / "gone")
        await drop(client, "c")
    for _ in range(2):
        async with running(app_of(config, StateDir(tmp_path / "state"))) as client:
            assert await hosted(client) == {"a": (fingerprint("first"), 1), "b": (fingerprint("more"), 1)}


async def test_the_client_loads_and_drops(tmp_path: Path) -> None:
    checkpoint(tmp_path / "more", "more")
    app = app_of(of(tmp_path, a="first"))
    async with running(app):
        transport = httpx.ASGITransport(app)
        async with AsyncReferenceClient("http://s", api_key="root", max_wait=0, transport=transport) as client:
            assert (await client.load("b", str(tmp_path / "more"))).fingerprint == fingerprint("more")
            assert list(await client.references()) == ["a", "b"]
            await client.drop("b")
            with pytest.raises(NotFound):
                await client.drop("b")
            with pytest.raises(RequestRefused, match="cannot be dropped"):
                await client.drop("a")
