"""What a named key may ask, as its holder sees it; and who it was, in log and metrics, never which key."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from grpo_server.app import create_app
from key_files import METRICS, SCORE, bearer, entry, of_each_kind, write
from prometheus_client.parser import text_string_to_metric_families
from server_fakes import FakeEngine, make_config, running

pytestmark = pytest.mark.anyio


def body(prompt: int, completion: int, start: int = 20) -> dict[str, Any]:
    return {"groups": [{"prompt": [start] * prompt, "completions": [[21] * completion]}]}


def keys_file(directory: Path, **limits: object) -> Path:
    entries = entry("scorer", SCORE, **limits), entry("scraper", METRICS, "metrics"), entry("other", "other")
    return write(directory / "keys.yaml", *entries)


async def test_tokens_a_minute_are_spent_and_said(engine: FakeEngine, tmp_path: Path) -> None:
    app = create_app(make_config(keys_file=keys_file(tmp_path, tokens_per_minute=60)), lambda: engine)
    async with running(app) as client:
        assert (await client.post("/v1/logprobs", json=body(30, 20), headers=bearer(SCORE))).status_code == 200
        refused = await client.post("/v1/logprobs", json=body(30, 20), headers=bearer(SCORE))
        assert (await client.post("/v1/logprobs", json=body(30, 20), headers=bearer("other"))).status_code == 200
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "key_rate_limit")
    assert "the key scorer has spent its 60 tokens a minute" in error["message"]
    assert "come back in" in error["message"]
    # 50 of 60 are spent and a token comes back a second, so 50 are there again 40 s later, less the test's own time
    assert 35 <= int(refused.headers["retry-after"]) <= 40
    assert SCORE not in refused.text


async def test_tokens_in_the_queue_are_counted_until_they_are_answered(engine: FakeEngine, tmp_path: Path) -> None:
    app = create_app(make_config(keys_file=keys_file(tmp_path, max_queue_tokens=60)), lambda: engine)
    async with running(app) as client:
        engine.hold()
        first = asyncio.create_task(client.post("/v1/logprobs", json=body(30, 20), headers=bearer(SCORE)))
        await engine.entered()
        refused = await client.post("/v1/logprobs", json=body(10, 5), headers=bearer(SCORE))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        other = asyncio.create_task(client.post("/v1/logprobs", json=body(30, 20), headers=bearer("other")))
        engine.let_go()
        assert (await first).status_code == (await other).status_code == 200
        assert (await client.post("/v1/logprobs", json=body(10, 5), headers=bearer(SCORE))).status_code == 200
        never = await client.post("/v1/logprobs", json=body(40, 21), headers=bearer(SCORE))
    assert (never.status_code, never.json()["error"]["code"]) == (413, "request_too_large")
    assert "send fewer groups a request" in never.json()["error"]["message"]


async def test_the_name_is_logged_and_counted_and_the_key_is_not(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app = create_app(make_config(keys_file=of_each_kind(tmp_path)), lambda: engine)
    async with running(app) as client:
        assert (await client.post("/v1/logprobs", json=body(3, 2), headers=bearer(SCORE))).status_code == 200
        assert (await client.post("/admin/reference", json={}, headers=bearer(SCORE))).status_code == 403
        assert (await client.get("/v1/reference", headers=bearer("stranger-key"))).status_code == 401
        text = (await client.get("/metrics", headers=bearer(METRICS))).text
    found = {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name.startswith("grpo_server_key")
    }
    assert found[("grpo_server_key_requests_total", "scorer", "200")] == 1
    assert found[("grpo_server_key_requests_total", "scorer", "403")] == 1
    assert found[("grpo_server_key_tokens_total", "scorer")] == 5
    assert found[("grpo_server_key_queue_tokens", "scorer")] == 0
    assert found[("grpo_server_key_tokens_total", "swapper")] == 0
    assert found[("grpo_server_keys_file_broken",)] == 0
    lines = [r for r in caplog.records if r.name == "grpo_server.access"]
    assert [getattr(r, "key", None) for r in lines] == ["scorer", "scorer", None, "scraper"]
    assert lines[0].getMessage().endswith("key scorer")
    seen = caplog.text + text
    assert not any(secret in seen for secret in (SCORE, METRICS, "stranger-key"))
