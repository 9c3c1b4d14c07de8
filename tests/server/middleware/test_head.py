"""HEAD is GET without the body, wherever GET takes nothing away."""

from __future__ import annotations

import httpx
import pytest
from server_fakes import PATIENCE, FakeEngine, real_server, serving

GETS = ["/livez", "/readyz", "/health", "/health/", "/metrics", "/v1/reference", "/v1/models", "/docs", "/openapi.json"]
GETS += ["/tokenizer_info", "/v2/health/live", "/v2/health/ready", "/v2"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", GETS)
async def test_head_has_the_status_and_headers_of_get_and_no_body(engine: FakeEngine, path: str) -> None:
    async with serving(engine) as client:
        get, head = await client.get(path), await client.head(path)
    assert (head.status_code, get.status_code) == (200, 200)
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # which counts its own asking
        assert head.headers["content-length"] == get.headers["content-length"]


def test_head_over_a_real_socket_leaves_the_connection_usable() -> None:
    with real_server(FakeEngine()) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        for path in ("/livez", "/metrics", "/nothing", "/v1/logprobs", "/livez"):
            status = {"/nothing": 404, "/v1/logprobs": 405}.get(path, 200)
            assert client.head(path).status_code == status
            assert client.get("/livez").json() == {"status": "alive"}


@pytest.mark.anyio
async def test_head_is_counted_under_its_route(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        await client.head("/v1/models")
        await client.head("/nothing")
        metrics = (await client.get("/metrics")).text
    assert 'grpo_server_requests_total{route="/v1/models",status="200"} 1.0' in metrics
    assert 'grpo_server_requests_total{route="unmatched",status="404"} 1.0' in metrics
    assert 'grpo_server_refusals_total{reason="not_found"} 1.0' in metrics


@pytest.mark.anyio
async def test_a_get_that_takes_something_away_is_not_asked_by_head(engine: FakeEngine) -> None:
    async with serving(engine, simple_grpo=True) as client:
        assert (await client.head("/get")).status_code == 405
        assert (await client.get("/get")).content == b"empty"
