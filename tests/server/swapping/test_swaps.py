"""A swap beside the serving reference, over HTTP with a fake engine: who answers meanwhile, and how it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from grpo_client import wire_json
from grpo_server.app import create_app
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.lifecycle import Service
from grpo_server.swapping.state import StateDir
from grpo_server.swapping.swaps import Wish
from server_fakes import FakeEngine, ask, expected, fingerprint, make_config, running, serving

pytestmark = pytest.mark.anyio

BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}
ADMIN = {"Authorization": "Bearer root"}


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")


def swap(client: httpx.AsyncClient, model: str, **more: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post("/admin/reference", json={"model": model, **more}, headers=ADMIN))


async def swap_status(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/v1/reference")).json()["swap"]


async def version(client: httpx.AsyncClient) -> int:
    return (await client.post("/v1/logprobs", json=BODY)).json()["reference"]["version"]


async def test_the_old_reference_serves_while_the_new_one_comes_up(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        assert "swap" not in (await client.get("/v1/reference")).json()
        engine.hold_change()
        swapping = swap(client, "other")
        await engine.entered()
        assert await version(client) == 1
        assert (await client.get("/readyz")).json() == {"status": "ready", "version": 1}
        under_way = await swap_status(client)
        engine.let_go()
        assert (await swapping).json()["version"] == 2
        assert await version(client) == 2
        done = await swap_status(client)
        metrics = (await client.get("/metrics")).text
    assert (under_way["state"], under_way["stage"], under_way["memory"]) == ("running", "load", "beside")
    assert (done["state"], done["version"], done["model"], done["error"]) == ("done", 2, "other", None)
    assert engine.changed_in == ["swap_0"]
    assert 'grpo_server_swaps_total{kind="swap",result="done"} 1.0' in metrics
    assert 'grpo_server_swap_seconds_count{kind="swap"} 1.0' in metrics


async def test_what_was_accepted_before_the_flip_is_answered_by_what_accepted_it(engine: FakeEngine) -> None:
    """Three batches of the old reference and one of the new are in the queue together."""
    old = [ask(4, 40, start=n) for n in range(3)]
    new = ask(4, 40, start=9)
    async with serving(engine, max_batch_tokens=50, cache_bytes=2**20) as client:

        async def post(request: Any) -> httpx.Response:
            headers = {"Content-Type": "application/json"}
            return await client.post("/v1/logprobs", content=wire_json.encode_request(request), headers=headers)

        engine.hold()
        before = [asyncio.create_task(post(request)) for request in old]
        await engine.entered()
        assert (await swap(client, "other")).status_code == 200
        assert "grpo_server_engines 2.0" in (await client.get("/metrics")).text
        assert not engine.closed
        after = asyncio.create_task(post(new))
        await asyncio.sleep(0)
        engine.let_go()
        for request, answer in zip(old, await asyncio.gather(*before), strict=True):
            result = wire_json.decode_result(answer.content)
            assert result.reference.version == 1
            np.testing.assert_array_equal(result.logprobs, expected(request, fingerprint("fake")))
        result = wire_json.decode_result((await after).content)
        assert result.reference.version == 2
        np.testing.assert_array_equal(result.logprobs, expected(new, fingerprint("other")))
        assert (await swap(client, "third")).status_code == 200  # waits until the first one is let go of
        assert engine.closed
        again = wire_json.decode_result((await post(new)).content)  # not what the cache holds of another reference
        np.testing.assert_array_equal(again.logprobs, expected(new, fingerprint("third")))


async def test_one_swap_at_a_time(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        engine.hold_change()
        first = swap(client, "other")
        await engine.entered()
        second = await swap(client, "third")
        engine.let_go()
        assert (await first).json()["model"] == "other"
    assert (second.status_code, second.json()["error"]["code"]) == (409, "swap_under_way")
    assert second.headers["retry-after"]
    assert "other" in second.json()["error"]["message"]


async def test_a_swap_that_is_cancelled_changes_nothing_and_the_next_one_may_come(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        assert (await client.delete("/admin/reference", headers=ADMIN)).status_code == 404
        assert (await client.delete("/admin/reference")).status_code == 401
        engine.hold_change()
        swapping = swap(client, "other")
        await engine.entered()
        cancelled = await client.delete("/admin/reference", headers=ADMIN)
        refused = await swapping
        busy = await swap(client, "third")  # a thread cannot be interrupted: it is still at its stage
        engine.let_go()
        assert await version(client) == 1
        while (third := await swap(client, "third")).status_code == 409:
            await asyncio.sleep(0)
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "swap_cancelled")
    assert busy.status_code == 409
    assert third.json()["version"] == 2


async def test_a_swap_ends_at_its_deadline(engine: FakeEngine) -> None:
    async with serving(engine, swap_timeout=0.05) as client:
        engine.hold_change()
        late = await swap(client, "other")
        status = await swap_status(client)
        assert await version(client) == 1
        engine.let_go()
    assert (late.status_code, late.json()["error"]["code"]) == (504, "swap_timeout")
    assert "--swap-timeout" in late.json()["error"]["message"]
    assert (status["state"], status["stage"]) == ("timeout", "load")
    assert status["error"] == late.json()["error"]["message"]


async def test_who_does_not_wait_is_told_at_once_and_a_client_that_leaves_ends_nothing(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        engine.hold_change()
        answer = await swap(client, "other", wait=False)
        await engine.entered()
        engine.let_go()
        while (status := await swap_status(client))["state"] == "running":
            await asyncio.sleep(0)
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
        assert (status["state"], status["version"]) == ("done", 2)
        engine.hold_change()
        leaves = swap(client, "third")
        await engine.entered()
        leaves.cancel()
        await asyncio.wait([leaves])
        engine.let_go()
        while (await swap_status(client))["state"] == "running":
            await asyncio.sleep(0)
        assert await version(client) == 3


async def test_where_there_is_no_room_serving_stops_and_why_is_said(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.no_room = "about 9.00 GiB would be needed beside the hosted reference, and 1.00 GiB is free"
    async with serving(engine) as client:
        engine.hold_change()
        swapping = swap(client, "other")
        await engine.entered()
        refused = await client.post("/v1/logprobs", json=BODY)
        engine.let_go()
        assert (await swapping).json()["version"] == 2
        status = await swap_status(client)
        assert await version(client) == 2
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "swapping")
    assert (status["memory"], status["why_in_place"]) == ("in-place", engine.no_room)
    assert engine.changed_in == ["compute_0"]
    assert engine.no_room in caplog.text


async def test_a_server_that_ends_takes_its_swap_along(engine: FakeEngine) -> None:
    app = create_app(make_config(), lambda: engine)
    async with running(app) as client:
        service: Service = app.state.service
        engine.hold_change()
        swapping = swap(client, "other")
        await engine.entered()
        service.close_door()
    assert (await swapping).json()["error"]["code"] == "draining"
    assert service.abandoned
    engine.let_go()


async def test_a_restart_knows_the_last_version(engine: FakeEngine, tmp_path: Path) -> None:
    app = create_app(make_config(), lambda: engine, state=StateDir(tmp_path))
    async with running(app) as client:
        await swap(client, "other")
        await swap(client, "missing")
    state = StateDir(tmp_path)
    assert state.recorded is not None
    assert (state.recorded.version, state.recorded.model) == (2, "other")
    assert state.recorded.fingerprint == fingerprint("other")
    state.close()


async def test_a_swap_that_is_ended_before_its_first_step_says_so(engine: FakeEngine) -> None:
    """The loop may come to both requests in one turn."""
    app = create_app(make_config(), lambda: engine)
    async with running(app) as client:
        swaps = app.state.service.swaps
        task = swaps.begin(Wish("other"))
        assert swaps.cancel(ServiceError(ErrorCode.SWAP_CANCELLED, "ended"))
        with pytest.raises(ServiceError) as ended:
            await task
        assert ended.value.code is ErrorCode.SWAP_CANCELLED
        assert (await swap_status(client))["state"] == "cancelled"
        assert (await swap(client, "other")).json()["version"] == 2
