"""A reference that is brought up beside the hosted one and waits for the word: what several servers that change together need
of each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from file_engine import FileEngine, checkpoint
from grpo_server.app import create_app
from grpo_server.swapping.state import StateDir
from server_fakes import FakeEngine, fingerprint, make_config, running, serving

pytestmark = pytest.mark.anyio

ADMIN = {"Authorization": "Bearer root"}


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")


async def hold(client: httpx.AsyncClient, model: str, **more: Any) -> httpx.Response:
    return await client.post("/admin/reference", json={"model": model, "hold": True, **more}, headers=ADMIN)


async def commit(client: httpx.AsyncClient, version: int) -> httpx.Response:
    return await client.post("/admin/reference/commit", json={"version": version}, headers=ADMIN)


async def score(client: httpx.AsyncClient, pin: str | None = None) -> httpx.Response:
    body = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}], "fingerprint": pin}
    return await client.post("/v1/logprobs", json=body)


async def stage(client: httpx.AsyncClient) -> tuple[str, str]:
    swap = (await client.get("/v1/reference")).json()["swap"]
    return swap["state"], swap["stage"]


async def test_what_is_held_answers_those_who_are_pinned_to_it_and_nobody_else(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        held = (await hold(client, "other", version=7)).json()
        assert (held["fingerprint"], held["version"]) == (fingerprint("other"), 7)
        assert await stage(client) == ("running", "hold")
        for pin, version in ((None, 1), (fingerprint("fake"), 1), (fingerprint("other"), 7)):
            assert (await score(client, pin)).json()["reference"]["version"] == version
        assert (await score(client, fingerprint("third"))).status_code == 409
        before = (await score(client, fingerprint("other"))).json()["groups"]
        assert (await commit(client, 7)).json()["version"] == 7
        after = (await score(client)).json()
        assert (after["groups"], after["reference"]["version"]) == (before, 7)
        assert (await score(client, fingerprint("fake"))).status_code == 409
        assert await stage(client) == ("done", "record")


async def test_the_word_may_be_said_again_and_only_for_what_is_held(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        assert (await commit(client, 1)).json()["version"] == 1  # hosted already
        nothing = await commit(client, 2)
        await hold(client, "other")
        wrong = await commit(client, 3)
        assert await stage(client) == ("running", "hold")
        first, second = await asyncio.gather(commit(client, 2), commit(client, 2))
        again = await commit(client, 2)
    assert first.json() == second.json() == again.json()
    for refused in (nothing, wrong):
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "not_held")
        assert refused.headers["x-should-retry"] == "false"


async def test_versions_only_grow(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        for version in (0, 1):
            refused = await hold(client, "other", version=version)
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "version")
        mixed = {"model": "other", "decay": 0.5, "version": 5}
        assert (await client.post("/admin/reference/ema", json=mixed, headers=ADMIN)).json()["version"] == 5


async def test_what_is_held_is_let_go_of_at_the_end_of_the_swap(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        await hold(client, "other")
        ended = await client.delete("/admin/reference", headers=ADMIN)
        assert ended.json()["state"] == "cancelled"
        assert (await score(client, fingerprint("other"))).status_code == 409
        assert (await commit(client, 2)).status_code == 409
        assert (await hold(client, "third")).json()["model"] == "third"  # when the one before has left
        assert "grpo_server_engines 2.0" in (await client.get("/metrics")).text
        assert (await commit(client, 2)).json()["model"] == "third"


async def test_a_word_that_never_comes_ends_at_the_deadline(engine: FakeEngine) -> None:
    async with serving(engine, swap_timeout=0.2) as client:
        assert (await hold(client, "other")).status_code == 200
        while (now := await stage(client))[0] == "running":
            await asyncio.sleep(0)
        assert now == ("timeout", "hold")
        assert (await score(client)).json()["reference"]["version"] == 1
        assert (await commit(client, 2)).status_code == 409


async def test_a_server_that_ends_does_not_wait_for_the_word(engine: FakeEngine) -> None:
    app = create_app(make_config(), lambda: engine)
    async with running(app) as client:
        await hold(client, "other")
        assert await app.state.service.drain(5.0)
    assert engine.closed


async def test_a_restart_before_the_word_serves_the_old_and_behind_it_the_new(tmp_path: Path) -> None:
    new = checkpoint(tmp_path / "new", "new")

    def recorded() -> tuple[int, str]:
        state = StateDir(tmp_path / "state")
        state.close()
        assert state.recorded is not None
        return state.recorded.version, state.recorded.fingerprint

    for word in (False, True):
        app = create_app(make_config(), lambda: FileEngine("old"), state=StateDir(tmp_path / "state"))
        async with running(app) as client:
            assert (await hold(client, str(new), version=4)).status_code == 200
            if word:
                await commit(client, 4)
        assert recorded() == ((4, fingerprint("new")) if word else (1, fingerprint("old")))


async def test_it_needs_the_admin_key(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        assert (await client.post("/admin/reference/commit", json={"version": 1})).status_code == 401
