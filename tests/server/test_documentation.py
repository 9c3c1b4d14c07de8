"""The API in a browser needs nobody but this server: every page, followed to whatever it fetches."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from grpo_server.app import create_app
from server_fakes import FakeEngine, make_config, running, serving

from tools.check_site import Page


def policy(header: str) -> dict[str, list[str]]:
    directives = [part.split() for part in header.split(";")]
    return {name: sources for name, *sources in directives}


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_a_page_fetches_from_this_server_alone_and_needs_no_key(
    engine: FakeEngine, tmp_path: Path, path: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alpha\n")
    async with serving(engine, api_key_file=keys) as client:
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        page = Page(answer.text)
        assert page.fetched == ["data:,", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/start.js"]
        for url in page.fetched[1:]:
            part = await client.get(url)
            assert part.status_code == 200, url
            assert part.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
            assert part.headers["x-content-type-options"] == "nosniff"
        assert (await client.get("/openapi.json")).status_code == 200
        assert "data-document='/openapi.json'" in answer.text


@pytest.mark.anyio
async def test_the_policy_lets_nothing_in_from_elsewhere_and_runs_nothing_that_stands_in_the_page(
    engine: FakeEngine,
) -> None:
    async with serving(engine) as client:
        answer = await client.get("/docs")
    allowed = policy(answer.headers["content-security-policy"])
    assert allowed["default-src"] == ["'none'"]
    assert {source for sources in allowed.values() for source in sources} == {"'none'", "'self'", "data:"}
    assert allowed["script-src"] == allowed["style-src"] == ["'self'"]
    assert allowed["frame-ancestors"] == allowed["base-uri"] == ["'none'"]
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\son\w+=|\sstyle=", answer.text), "the policy would block it"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.anyio
async def test_a_script_that_starts_the_page_asks_no_validator_elsewhere(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        start = (await client.get("/docs/start.js")).text
    assert "validatorUrl: null" in start
    assert "//" not in start


@pytest.mark.anyio
async def test_a_prefix_cannot_break_out_of_the_page(engine: FakeEngine) -> None:
    app = create_app(make_config(), lambda: engine)
    prefixed = httpx.ASGITransport(app, root_path="/a'b\"<script>c")
    async with running(app), httpx.AsyncClient(transport=prefixed, base_url="http://server") as client:
        text = (await client.get("/docs")).text
    assert "<script>" not in text
    assert "data-document='/a&#x27;b&quot;&lt;script&gt;c/openapi.json'" in text


def test_nothing_is_left_of_the_pages_that_fetch_from_a_cdn() -> None:
    app = create_app(make_config(), FakeEngine)
    assert not {"/docs/oauth2-redirect"} & {getattr(route, "path", "") for route in app.routes}
    assert (app.docs_url, app.redoc_url) == (None, None)


@pytest.mark.anyio
async def test_the_document_says_how_a_key_is_sent_and_that_a_server_may_want_none(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        document = (await client.get("/openapi.json")).json()
    [scheme] = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert {} in document["security"]
