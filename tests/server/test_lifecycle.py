"""Loading, failing to load, swapping, draining, leaving; seen from outside."""

from __future__ import annotations

import asyncio
import socket
import threading

import httpx
import numpy as np
import pytest
from grpo_client import wire_json
from grpo_server.app import create_app
from grpo_server.lifecycle import Service
from grpo_server.phase import Phase
from grpo_server.stages import Stages
from server_fakes import PATIENCE, FakeClock, FakeEngine, ask, expected, make_config, real_server, running, serving

pytestmark = pytest.mark.anyio

BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}
ADMIN = {"Authorization": "Bearer root"}


async def test_while_loading_livez_answers_and_all_else_is_503(engine: FakeEngine) -> None:
    go = threading.Event()

    def load() -> FakeEngine:
        assert go.wait(PATIENCE)
        return engine

    app = create_app(make_config(), load)
    async with running(app, loaded=False) as client:
        assert (await client.get("/livez")).status_code == 200
        for method, path in [
            ("GET", "/readyz"),
            ("GET", "/health"),
            ("GET", "/v1/reference"),
            ("GET", "/v1/models"),
            ("POST", "/v1/logprobs"),
            ("GET", "/tokenizer_info"),
        ]:
            response = await client.request(method, path, json=BODY if method == "POST" else None)
            assert response.status_code == 503, path
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "loading"
        assert (await client.get("/readyz")).json()["status"] == "loading"
        assert "grpo_server_ready 0.0" in (await client.get("/metrics")).text
        go.set()
        await app.state.service.loaded.wait()
        assert (await client.get("/readyz")).json() == {"status": "ready", "version": 1}
        assert (await client.post("/v1/logprobs", json=BODY)).status_code == 200
    assert engine.closed


async def test_a_model_that_does_not_load_is_reported_and_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> FakeEngine:
        raise OSError("no such directory: ./sft")

    app = create_app(make_config(), load)
    async with running(app) as client:
        service: Service = app.state.service
        assert service.failed.is_set()
        assert service.phase is Phase.FAILED
        response = await client.post("/v1/logprobs", json=BODY)
        assert response.status_code == 503
        assert "./sft" in response.json()["error"]["message"]
        assert "retry-after" not in response.headers
        assert (await client.get("/readyz")).status_code == 503
    assert "./sft" in caplog.text


async def test_a_swap_in_place_answers_the_old_refuses_meanwhile_and_serves_the_new(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    async with serving(engine, swap_memory="in-place") as client:
        before = (await client.post("/v1/logprobs", json=BODY)).json()
        await engine.entered()
        engine.hold_change()
        swap = asyncio.create_task(client.post("/admin/reference", json={"model": "other"}, headers=ADMIN))
        await engine.entered()
        ready = await client.get("/readyz")
        refused = await client.post("/v1/logprobs", json=BODY)
        second = await client.post("/admin/reference", json={"model": "third"}, headers=ADMIN)
        engine.let_go()
        swapped = await swap
        after = (await client.post("/v1/logprobs", json=BODY)).json()
        metrics = (await client.get("/metrics")).text
    assert (ready.status_code, ready.json()["status"]) == (503, "swapping")
    for response in (refused, second):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "swapping"
        assert response.headers["retry-after"]
    assert swapped.status_code == 200
    assert (swapped.json()["version"], swapped.json()["model"]) == (2, "other")
    assert (before["reference"]["version"], after["reference"]["version"]) == (1, 2)
    assert before["reference"]["fingerprint"] != after["reference"]["fingerprint"]
    assert before["groups"][0]["logprobs"] != after["groups"][0]["logprobs"]
    assert "grpo_server_reference_version 2.0" in metrics


async def test_a_mix_moves_the_reference_and_what_cannot_be_loaded_leaves_it(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    async with serving(engine) as client:

        async def post(path: str, body: object) -> httpx.Response:
            return await client.post(path, json=body, headers=ADMIN)

        mixed = await post("/admin/reference/ema", {"model": "policy", "decay": 0.9})
        assert mixed.json()["model"] == "policy*0.9"
        assert mixed.json()["version"] == 2
        for path, body, status, param in [
            ("/admin/reference", {"model": "missing"}, 422, "model"),
            ("/admin/reference/ema", {"model": "missing", "decay": 0.5}, 422, "model"),
            ("/admin/reference/ema", {"model": "policy", "decay": 1.5}, 400, "decay"),
            ("/admin/reference/ema", {"model": "policy"}, 400, "decay"),
            ("/admin/reference", {"model": "x", "path": "y"}, 400, "path"),
        ]:
            response = await post(path, body)
            assert response.status_code == status, response.text
            assert response.json()["error"]["param"] == param
        assert (await client.post("/v1/logprobs", json=BODY)).json()["reference"]["version"] == 2
        assert (await client.get("/readyz")).status_code == 200


async def test_readyz_says_what_the_start_is_busy_with(engine: FakeEngine) -> None:
    at_stage, go = threading.Event(), threading.Event()
    now = FakeClock()
    stages = Stages(now)

    def load() -> FakeEngine:
        stages.enter("load")
        stages.enter("probe")
        now.now += 7
        at_stage.set()
        assert go.wait(PATIENCE)
        return engine

    app = create_app(make_config(), load, stages)
    async with running(app, loaded=False) as client:
        await asyncio.to_thread(at_stage.wait, PATIENCE)
        readyz = (await client.get("/readyz")).json()
        refused = (await client.post("/v1/logprobs", json=BODY)).json()
        go.set()
        await app.state.service.loaded.wait()
        assert (await client.get("/readyz")).json()["status"] == "ready"
    for words in (readyz["detail"], readyz["error"]["message"], refused["error"]["message"]):
        assert "loading fake: comparing scores with the model's own forward, for 7 s so far" in words


def test_each_stage_is_a_line_when_it_begins_and_one_with_its_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = FakeClock()
    stages = Stages(now)
    stages.enter("load")
    now.now += 2.5
    stages.enter("probe")
    now.now += 1
    stages.leave()
    stages.leave()
    assert [r.getMessage() for r in caplog.records] == [
        "load: reading the weights",
        "load: done in 2.5 s",
        "probe: comparing scores with the model's own forward",
        "probe: done in 1.0 s",
    ]
    assert [(r.stage, getattr(r, "seconds", None)) for r in caplog.records] == [
        ("load", None),
        ("load", 2.5),
        ("probe", None),
        ("probe", 1.0),
    ]


def test_a_client_that_hangs_up_is_not_computed_for() -> None:
    """Over a real socket: the second of three requests is dropped while the engine is busy with the first."""
    engine = FakeEngine()
    first, left, last = (ask(n, 1) for n in (2, 3, 4))
    with real_server(engine) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        engine.hold()
        answers: dict[str, httpx.Response] = {}

        def post(name: str, request: object) -> None:
            body = wire_json.encode_request(request)  # type: ignore[arg-type]
            answers[name] = client.post("/v1/logprobs", content=body, headers={"Content-Type": "application/json"})

        threads = [threading.Thread(target=post, args=("first", first))]
        threads[0].start()
        asyncio.run(engine.entered())

        host, port = url.removeprefix("http://").split(":")
        body = wire_json.encode_request(left)
        head = f"POST /v1/logprobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(f"{head}\r\n\r\n".encode() + body)
            _until(client, 2)
        _until(client, 1)  # it hung up, and its place in the queue is free

        threads.append(threading.Thread(target=post, args=("last", last)))
        threads[1].start()
        _until(client, 2)
        engine.let_go()
        for thread in threads:
            thread.join()
    assert [len(p.prompt) for b in engine.batches for p in b] == [2, 4]
    assert {name: r.status_code for name, r in answers.items()} == {"first": 200, "last": 200}
    np.testing.assert_array_equal(
        wire_json.decode_result(answers["last"].content).logprobs, expected(last, engine.info.fingerprint)
    )


def _until(client: httpx.Client, requests: int) -> None:
    """Ask the server until so many requests are under way; each asking is a round trip, so this waits without sleeping."""
    for _ in range(10_000):
        if f"grpo_server_queue_requests {float(requests)}" in client.get("/metrics").text:
            return
    raise AssertionError(f"there were never {requests} requests in the queue")
