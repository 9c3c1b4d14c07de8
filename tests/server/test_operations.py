"""What operators look at: probes, request ids, log lines, metrics, and errors that nobody expected."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from fastapi import APIRouter
from grpo_server import logs
from grpo_server.app import create_app
from grpo_server.logs import RequestIdFilter
from prometheus_client.parser import text_string_to_metric_families
from server_fakes import FakeEngine, make_config, running, serving

pytestmark = pytest.mark.anyio

BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}


def samples(text: str) -> dict[str, float]:
    """name{labels} -> value of an exposition."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for s in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(s.labels.items()))
            found[f"{s.name}{{{labels}}}" if labels else s.name] = s.value
    return found


async def test_metrics_count_what_happened(engine: FakeEngine) -> None:
    async with serving(engine, cache_bytes=2**20) as client:
        await client.post("/v1/logprobs", json=BODY)
        await client.post("/v1/logprobs", json=BODY)
        await client.post("/v1/logprobs", json={**BODY, "temperature": 0})
        await client.get("/no/such/path/1")
        await client.get("/no/such/path/2")
        found = samples((await client.get("/metrics")).text)
    expected = {
        "grpo_server_requests_total{route=/v1/logprobs,status=200}": 2,
        "grpo_server_requests_total{route=/v1/logprobs,status=422}": 1,
        "grpo_server_requests_total{route=unmatched,status=404}": 2,
        "grpo_server_request_seconds_count{route=/v1/logprobs}": 3,
        "grpo_server_refusals_total{reason=invalid_temperature}": 1,
        "grpo_server_refusals_total{reason=not_found}": 2,
        "grpo_server_queue_seconds_count": 1,
        "grpo_server_compute_seconds_count": 1,
        "grpo_server_batch_tokens_sum": 5,
        "grpo_server_scored_tokens_total": 3,
        "grpo_server_computed_tokens_total": 5,
        "grpo_server_cache_hits_total": 2,
        "grpo_server_cache_misses_total": 2,
        "grpo_server_oom_splits_total": 0,
        "grpo_server_queue_requests": 0,
        "grpo_server_queue_tokens": 0,
        "grpo_server_queue_bytes": 0,
        "grpo_server_max_batch_tokens": 6144,
        "grpo_server_max_queue_tokens": 524_288,
        "grpo_server_reference_version": 1,
        "grpo_server_ready": 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["grpo_server_cache_bytes"] > 0


async def test_the_queue_is_seen_while_it_is_there(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        engine.hold()
        waiting = asyncio.create_task(client.post("/v1/logprobs", json=BODY))
        await engine.entered()
        found = samples((await client.get("/metrics")).text)
        assert found["grpo_server_queue_requests"] == 1
        assert found["grpo_server_queue_tokens"] == 5
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200  # busy is not unready
        engine.let_go()
        assert (await waiting).status_code == 200


async def test_openmetrics_for_who_asks_for_it(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


async def test_a_request_id_is_taken_echoed_and_logged(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.addFilter(RequestIdFilter())
    async with serving(engine) as client:
        response = await client.post("/v1/logprobs", json=BODY, headers={"X-Request-Id": "step-7/worker-2"})
        refused = await client.post("/v1/logprobs", content=b"", headers={"X-Request-Id": "bad-one"})
    assert response.headers["x-request-id"] == "step-7/worker-2"
    assert refused.headers["x-request-id"] == "bad-one"
    lines = {r.request_id: r for r in caplog.records if r.name == "grpo_server.access"}  # type: ignore[attr-defined]
    assert "POST /v1/logprobs 200" in lines["step-7/worker-2"].getMessage()
    assert "415" in lines["bad-one"].getMessage()
    assert "unsupported_media_type" in lines["bad-one"].getMessage()


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "tab\there"])
async def test_an_id_that_could_forge_a_line_is_replaced(engine: FakeEngine, given: str) -> None:
    async with serving(engine) as client:
        response = await client.get("/livez", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] != given
    assert len(response.headers["x-request-id"]) == 32


async def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    token = logs.request_id.set("abc")
    try:
        logs.configure("info", "json")
        logging.getLogger("grpo_server.access").info("hello %d", 1, extra={"route": "/x", "status": 200})
    finally:
        logs.request_id.reset(token)
        root.handlers[:], root.level = before
    [line] = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["message"] == "hello 1"
    assert (record["request_id"], record["level"], record["route"], record["status"]) == ("abc", "INFO", "/x", 200)


async def test_what_nobody_expected_is_a_500_in_the_same_shape_and_the_server_lives(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    router = APIRouter()

    @router.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("a bug")

    app = create_app(make_config(), lambda: engine)
    app.include_router(router)
    async with running(app) as client:
        response = await client.get("/broken", headers={"X-Request-Id": "find-me"})
        assert response.status_code == 500
        assert response.headers["x-request-id"] == "find-me"
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert "find-me" in error["message"]
        assert "a bug" not in error["message"]
        assert "ZeroDivisionError" in caplog.text
        assert (await client.post("/v1/logprobs", json=BODY)).status_code == 200
        found = samples((await client.get("/metrics")).text)
    assert found["grpo_server_requests_total{route=/broken,status=500}"] == 1


async def test_an_engine_failure_is_a_500_and_out_of_memory_a_503(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    from grpo_server.engine.contract import OutOfMemory

    async with serving(engine) as client:
        engine.fail = lambda pieces: RuntimeError("boom")
        failed = await client.post("/v1/logprobs", json=BODY)
        engine.fail = lambda pieces: OutOfMemory("no room")
        too_large = await client.post("/v1/logprobs", json=BODY)
        engine.fail = lambda pieces: None
        good = await client.post("/v1/logprobs", json=BODY)
    assert [r.status_code for r in (failed, too_large, good)] == [500, 503, 200]
    assert failed.json()["error"]["code"] == "engine_failed"
    assert too_large.json()["error"]["code"] == "out_of_memory"
    assert too_large.headers["x-should-retry"] == "false"
    assert "retry-after" not in too_large.headers


async def test_a_full_queue_is_a_429_that_says_when(engine: FakeEngine) -> None:
    async with serving(engine, max_batch_tokens=64, max_queue_tokens=64) as client:
        engine.hold()
        first = asyncio.create_task(client.post("/v1/logprobs", json={"groups": [_group(60)]}))
        await engine.entered()
        refused = await client.post("/v1/logprobs", json=BODY)
        never = await client.post("/v1/logprobs", json={"groups": [_group(60)] * 2})
        engine.let_go()
        assert (await first).status_code == 200
        assert (await client.post("/v1/logprobs", json=BODY)).status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) <= 1000 * int(refused.headers["retry-after"])
    assert refused.json()["error"]["code"] == "queue_full"
    assert never.status_code == 413
    assert "retry-after" not in never.headers


def _group(tokens: int) -> dict[str, object]:
    return {"prompt": [1], "completions": [[2] * (tokens - 1)]}
