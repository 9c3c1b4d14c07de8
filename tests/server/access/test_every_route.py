"""The whole table of routes, as the application has it: without a key, with a wrong one, and with the wrong kind of key.

Mounted below a prefix and behind a proxy that strips one as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from grpo_server.app import create_app
from key_files import ADMIN, METRICS, SCORE, bearer, of_each_kind
from server_fakes import PATIENCE, FakeEngine, make_config
from starlette.applications import Starlette
from starlette.routing import Mount, Route

pytestmark = pytest.mark.anyio

# Written down once more, so that a route which is opened by mistake is noticed.
OPEN = {"/livez", "/readyz", "/health", "/health/", "/v2/health/live", "/v2/health/ready"}
OPEN |= {"/openapi.json", "/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/redoc"}
OPEN |= {"/ui", "/ui/", "/ui/softmax", "/ui/runs", "/ui/server"}
OPEN_BELOW = ("/ui/files/",)
KEYS = {"score": SCORE, "admin": ADMIN, "metrics": METRICS}


def scope_of(method: str, path: str) -> str | None:
    if path in OPEN or path.startswith(OPEN_BELOW):
        return None
    if path.startswith("/v1/references") and method not in ("GET", "HEAD"):
        return "admin"
    return {"/metrics": "metrics"}.get(path, "admin" if path.startswith("/admin/") else "score")


def routes_of(routes: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """(method, path with its parameters filled in) of every route, those that the documentation leaves out among them."""
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            assert not route.include_context.prefix
            yield from routes_of(included.routes)
            continue
        assert isinstance(route, Route), f"{route!r} is no plain route: say here what keys it needs"
        path = route.path.replace("{model_name}", "fake").replace("{model_version}", "1")
        for method in route.methods or ():
            yield method, path


@contextlib.asynccontextmanager
async def below(app: FastAPI, prefix: str) -> AsyncIterator[httpx.AsyncClient]:
    """The application, alone, mounted twice, or told by the server that a proxy strips a prefix."""
    outer = app
    if prefix == "/a/b":
        outer = Starlette(routes=[Mount("/a", Starlette(routes=[Mount("/b", app)]))])
    async with app.router.lifespan_context(app):
        await app.state.service.loaded.wait()
        told = prefix if prefix == "/proxied" else ""
        transport = httpx.ASGITransport(outer, raise_app_exceptions=False, root_path=told)
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://server{prefix}", timeout=PATIENCE
        ) as client:
            yield client


@pytest.mark.parametrize("prefix", ["", "/a/b", "/proxied"])
async def test_each_route_opens_to_its_own_kind_of_key_alone(engine: FakeEngine, tmp_path: Path, prefix: str) -> None:
    app = create_app(make_config(keys_file=of_each_kind(tmp_path), simple_grpo=True), lambda: engine)
    table = [*routes_of(app.routes), ("GET", "/no/such/route"), ("POST", "/admin/none"), ("POST", "/Metrics")]
    assert len(table) > 30
    async with below(app, prefix) as client:
        for method, path in table:
            scope = scope_of(method, path)

            async def ask(headers: dict[str, str], method: str = method, path: str = path) -> httpx.Response:
                return await client.request(method, path, headers=headers)

            for headers in ({}, bearer(""), bearer("wrong"), bearer(SCORE[:-1]), {"Authorization": SCORE}):
                status = (await ask(headers)).status_code
                assert (status == 401) == (scope is not None), (method, path, headers)
            for kind, key in KEYS.items():
                answer = await ask(bearer(key))
                if scope in (None, kind):
                    assert answer.status_code not in (401, 403), (method, path, kind)
                else:
                    assert answer.status_code == 403, (method, path, kind)
                    if method != "HEAD" and "/v2/" not in path:
                        assert answer.json()["error"]["code"] == "insufficient_scope"
                        assert f"this route needs {scope}" in answer.json()["error"]["message"]
    assert engine.info.version == 1


async def test_the_key_files_of_old_and_named_keys_stand_side_by_side(engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "api").write_text("alpha\n")
    (tmp_path / "root").write_text("root\n")
    files = {"api_key_file": tmp_path / "api", "admin_key_file": tmp_path / "root"}
    app = create_app(make_config(keys_file=of_each_kind(tmp_path), **files), lambda: engine)
    opened = {
        "/v1/reference": {"alpha", "root", SCORE},
        "/metrics": {"root", METRICS},
        "/admin/reference": {"root", ADMIN},
    }
    async with below(app, "") as client:
        for path, keys in opened.items():
            method = "POST" if path.startswith("/admin") else "GET"
            for key in ("alpha", "root", *KEYS.values()):
                status = (await client.request(method, path, json={"model": 1}, headers=bearer(key))).status_code
                assert (status not in (401, 403)) == (key in keys), (path, key)
