"""A drain refuses the new and answers what was accepted, a swap and a load included."""

from __future__ import annotations

import asyncio
import threading

import pytest
from grpo_server.app import create_app
from grpo_server.lifecycle import Service
from grpo_server.phase import Phase
from server_fakes import PATIENCE, FakeEngine, make_config, running

pytestmark = pytest.mark.anyio


BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}


ADMIN = {"Authorization": "Bearer root"}


async def test_a_drain_refuses_the_new_and_answers_the_accepted(engine: FakeEngine) -> None:
    app = create_app(make_config(), lambda: engine)
    async with running(app) as client:
        service: Service = app.state.service
        engine.hold()
        accepted = asyncio.create_task(client.post("/v1/logprobs", json=BODY))
        await engine.entered()
        drain = asyncio.create_task(service.drain(PATIENCE))
        await asyncio.sleep(0)
        refused = await client.post("/v1/logprobs", json=BODY)
        ready = await client.get("/readyz")
        assert (await client.get("/livez")).status_code == 200
        engine.let_go()
        assert await drain
        assert (await accepted).status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"]
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")


async def test_a_drain_waits_for_a_swap_that_has_begun(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    app = create_app(make_config(), lambda: engine)
    async with running(app) as client:
        service: Service = app.state.service
        engine.hold_change()
        swap = asyncio.create_task(client.post("/admin/reference", json={"model": "other"}, headers=ADMIN))
        await engine.entered()
        drain = asyncio.create_task(service.drain(PATIENCE))
        while service.phase is not Phase.DRAINING:
            await asyncio.sleep(0)
        await asyncio.to_thread(lambda: None)  # a turn of the loop in which a drain that waits for nothing would end
        assert not drain.done()
        engine.let_go()
        assert await drain
        assert (await swap).json()["version"] == 2


async def test_a_swap_that_waits_for_its_turn_is_refused_when_the_drain_begins(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    app = create_app(make_config(swap_memory="in-place"), lambda: engine)
    async with running(app) as client:
        service: Service = app.state.service
        engine.hold()
        accepted = asyncio.create_task(client.post("/v1/logprobs", json=BODY))
        await engine.entered()
        swap = asyncio.create_task(client.post("/admin/reference", json={"model": "other"}, headers=ADMIN))
        while service.phase is not Phase.SWAPPING:
            await asyncio.sleep(0)
        drain = asyncio.create_task(service.drain(PATIENCE))
        while service.phase is not Phase.DRAINING:
            await asyncio.sleep(0)
        engine.let_go()
        assert await drain
        assert (await accepted).status_code == 200
        assert ((await swap).status_code, (await swap).json()["error"]["code"]) == (503, "draining")
    assert engine.changed_in == []


async def test_a_load_that_ends_after_the_drain_began_serves_nobody(engine: FakeEngine) -> None:
    go = threading.Event()

    def load() -> FakeEngine:
        assert go.wait(PATIENCE)
        return engine

    app = create_app(make_config(), load)
    async with running(app, loaded=False) as client:
        service: Service = app.state.service
        assert await service.drain(PATIENCE)
        for _ in range(2):
            for method, path in [("GET", "/readyz"), ("POST", "/v1/logprobs")]:
                refused = await client.request(method, path, json=BODY if method == "POST" else None)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
                assert refused.headers["retry-after"]
            go.set()
            await service.loaded.wait()
        assert service.phase is Phase.DRAINING
    assert engine.closed


async def test_a_request_that_is_cut_off_while_draining_gets_a_503(engine: FakeEngine) -> None:
    app = create_app(make_config(), lambda: engine)
    async with running(app) as client:
        service: Service = app.state.service
        engine.hold()
        request = asyncio.create_task(client.post("/v1/logprobs", json=BODY))
        await engine.entered()
        service.close_door()
        request.cancel()
        answer = await request
        engine.let_go()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert answer.headers["retry-after"]
