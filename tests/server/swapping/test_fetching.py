"""Where a model comes from: what is allowed, what is fit to be read, and what never answers."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import httpx
import pytest
from file_engine import FileEngine, checkpoint
from grpo_server.app import create_app
from server_fakes import make_config, running

pytestmark = pytest.mark.anyio

ADMIN = {"Authorization": "Bearer root"}
BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")


async def swap(client: httpx.AsyncClient, model: object) -> httpx.Response:
    return await client.post("/admin/reference", json={"model": str(model)}, headers=ADMIN)


async def test_only_what_lies_below_the_root_is_hosted(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", checkpoint(tmp_path / "outside", "outside")
    root.mkdir()
    inside = checkpoint(root / "inside", "inside")
    (root / "link").symlink_to(outside)
    (root / "alias").symlink_to(inside)
    leads_out = checkpoint(root / "leads-out", "x")
    (leads_out / "weights").unlink()
    (leads_out / "weights").symlink_to(outside / "weights")
    app = create_app(make_config(swap_root=root), FileEngine)
    async with running(app) as client:
        for model, status, code in [
            (outside, 403, "source_forbidden"),
            (root / "link", 403, "source_forbidden"),
            (root / "inside" / ".." / ".." / "outside", 403, "source_forbidden"),
            ("owner/model", 403, "source_forbidden"),
            (leads_out, 422, "model_unavailable"),
            (root / "nowhere", 422, "model_unavailable"),
        ]:
            response = await swap(client, model)
            assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
            assert response.json()["error"]["param"] == "model"
        assert (await swap(client, inside)).json()["version"] == 2
        assert (await swap(client, root / "alias")).json()["version"] == 3


async def test_a_pipe_that_nobody_writes_to_is_refused(tmp_path: Path) -> None:
    """Opened, it would block its thread for ever."""
    model = checkpoint(tmp_path / "model", "x")
    os.mkfifo(model / "model.safetensors")
    async with running(create_app(make_config(), FileEngine)) as client:
        response = await swap(client, model)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "model_unavailable")
    assert "no regular file" in response.json()["error"]["message"]


async def test_a_hub_that_never_answers_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        async with running(create_app(make_config(swap_timeout=0.5), FileEngine)) as client:
            late = asyncio.create_task(swap(client, "owner/model"))
            while (await client.get("/v1/reference")).json().get("swap", {}).get("stage") != "fetch":
                await asyncio.sleep(0)
            assert (await client.post("/v1/logprobs", json=BODY)).json()["reference"]["version"] == 1
            assert (await late).json()["error"]["code"] == "swap_timeout"
            assert (await client.get("/readyz")).status_code == 200
            after = await swap(client, checkpoint(tmp_path / "model", "next"))
            assert after.status_code in (200, 504)  # half a second may be short for a process on a busy machine


async def test_a_swap_that_fetches_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        async with running(create_app(make_config(), FileEngine)) as client:
            waits = asyncio.create_task(swap(client, "owner/model"))
            while (await client.get("/v1/reference")).json().get("swap", {}).get("stage") != "fetch":
                await asyncio.sleep(0)
            cancelled = await client.delete("/admin/reference", headers=ADMIN)
            assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
            assert (await waits).json()["error"]["code"] == "swap_cancelled"
            assert (await swap(client, checkpoint(tmp_path / "model", "next"))).json()["version"] == 2
