"""The application below a prefix: mounted in another, or behind a proxy that strips it. The gate stands where it stood."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from grpo_server.app import create_app
from grpo_server.config.sources import load_config
from server_fakes import PATIENCE, FakeEngine, make_config, real_server
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

BODY = {"groups": [{"prompt": [1], "completions": [[2]]}]}
SWAP = {"model": "other"}
# What a client may write in the hope that router and gate read it differently; all of them reach for the swap.
TRICKS = [
    "/ref/admin/reference",
    "/ref//admin/reference",
    "//ref/admin/reference",
    "/ref/ref/admin/reference",
    "/ref/admin//reference",
    "/ref/./admin/reference",
    "/ref/%2e/admin/reference",
    "/ref/v1/../admin/reference",
    "/ref/livez/../admin/reference",
    "/ref/livez/%2e%2e/admin/reference",
    "/ref/%61dmin/reference",
    "/ref%2fadmin%2freference",
    "/ref/admin%2freference",
    "/ref/admin/reference/",
    "/ref/Admin/reference",
    "/ref/admin/reference?x=/livez",
    "/ref/admin/reference;livez",
    "/ref/admin/reference%00",
    "/admin/reference",
    "/ref/livez/admin/reference",
    "/ref/v2/health/../../admin/reference",
    "/ref/v2/health/%2e%2e/%2e%2e/admin/reference",
]
METHODS = ("POST", "GET", "HEAD", "OPTIONS", "PUT")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@contextlib.asynccontextmanager
async def mounted(outer: Starlette | FastAPI, app: FastAPI, root_path: str = "") -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app):
        await app.state.service.loaded.wait()
        transport = httpx.ASGITransport(outer, raise_app_exceptions=False, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=PATIENCE) as client:
            yield client


def in_starlette(app: ASGIApp) -> Starlette:
    return Starlette(routes=[Mount("/ref", app)])


def in_fastapi(app: ASGIApp) -> FastAPI:
    outer = FastAPI()
    outer.mount("/ref", app)
    return outer


def in_two(app: ASGIApp) -> Starlette:
    return Starlette(routes=[Mount("/outer", Starlette(routes=[Mount("/ref", app)]))])


@pytest.fixture
def key_files(tmp_path: Path) -> dict[str, Path]:
    api, admin = tmp_path / "api", tmp_path / "admin"
    api.write_text("alpha\n")
    admin.write_text("root\n")
    return {"api_key_file": api, "admin_key_file": admin}


@pytest.mark.anyio
@pytest.mark.parametrize("outer", [in_starlette, in_fastapi])
@pytest.mark.parametrize("with_keys", [True, False])
async def test_no_way_of_writing_the_path_swaps_without_the_admin_key(
    engine: FakeEngine, key_files: dict[str, Path], outer, with_keys: bool
) -> None:
    app = create_app(make_config(**(key_files if with_keys else {})), lambda: engine)
    async with mounted(outer(app), app) as client:
        for path in TRICKS:
            for method in METHODS:
                for headers in ({}, bearer("alpha"), bearer("wrong")):
                    response = await client.request(method, path, json=SWAP, headers=headers)
                    assert response.status_code in (401, 403, 404, 405, 307), (method, path, response.status_code)
        refused = await client.post("/ref/admin/reference", json=SWAP, headers=bearer("alpha"))
        assert refused.status_code == (401 if with_keys else 403)
        assert engine.info.version == 1
        assert (await client.post("/ref/v1/logprobs", json=BODY)).status_code == (401 if with_keys else 200)
        assert (await client.post("/ref/v1/logprobs", json=BODY, headers=bearer("alpha"))).status_code == 200
        assert (await client.get("/ref/no/such/route")).status_code == (401 if with_keys else 404)
        swapped = await client.post("/ref/admin/reference", json=SWAP, headers=bearer("root"))
        assert swapped.status_code == (200 if with_keys else 403)


@pytest.mark.anyio
async def test_what_is_open_is_open_below_the_prefix_and_knows_where_it_is(
    engine: FakeEngine, key_files: dict[str, Path]
) -> None:
    app = create_app(make_config(**key_files), lambda: engine)
    async with mounted(in_two(app), app, root_path="/proxy") as client:
        for path in ("livez", "readyz", "health", "health/", "metrics", "docs", "redoc", "v2/health/live"):
            for method in ("GET", "HEAD"):
                response = await client.request(method, f"/proxy/outer/ref/{path}")
                assert response.status_code == 200, (method, path)
        schema = (await client.get("/proxy/outer/ref/openapi.json")).json()
        assert schema["servers"][0] == {"url": "/proxy/outer/ref"}
        assert "'/proxy/outer/ref/openapi.json'" in (await client.get("/proxy/outer/ref/docs")).text
        assert (await client.get("/proxy/outer/ref/v1/reference")).status_code == 401
        metrics = (await client.get("/proxy/outer/ref/metrics")).text
    assert 'route="/livez"' in metrics


@pytest.mark.anyio
async def test_errors_below_a_prefix_speak_the_dialect_of_their_route(
    engine: FakeEngine, key_files: dict[str, Path]
) -> None:
    app = create_app(make_config(**key_files), lambda: engine)
    async with mounted(in_starlette(app), app) as client:
        native = await client.get("/ref/v1/reference")
        open_inference = await client.get("/ref/v2/models/fake")
    assert native.json()["error"]["code"] == "missing_api_key"
    assert isinstance(open_inference.json()["error"], str)


@pytest.mark.anyio
async def test_a_route_added_later_that_declares_nothing_needs_a_key(
    engine: FakeEngine, key_files: dict[str, Path]
) -> None:
    app = create_app(make_config(**key_files), lambda: engine)

    @app.get("/later")
    async def later() -> str:
        return "seen"

    async with mounted(in_starlette(app), app) as client:
        assert (await client.get("/ref/later")).status_code == 401
        assert (await client.get("/ref/later", headers=bearer("alpha"))).json() == "seen"


def test_behind_a_proxy_that_strips_the_prefix(key_files: dict[str, Path]) -> None:
    """What uvicorn's --root-path is for: the proxy sends /admin/reference, and the server's own path has the prefix."""
    engine = FakeEngine()
    with real_server(engine, root_path="/ref", **key_files) as url, httpx.Client(base_url=url) as client:
        for path in ("/admin/reference", "//admin/reference", "/%61dmin/reference", "/ref/admin/reference"):
            for headers in ({}, bearer("alpha")):
                response = client.post(path, json=SWAP, headers=headers)
                assert response.status_code in (401, 404), (path, response.status_code)
        assert engine.info.version == 1
        assert client.get("/livez").status_code == 200
        assert client.head("/livez").status_code == 200
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/ref"}]
        assert client.post("/v1/logprobs", json=BODY).status_code == 401
        assert client.post("/v1/logprobs", json=BODY, headers=bearer("alpha")).status_code == 200
        assert client.post("/admin/reference", json=SWAP, headers=bearer("root")).json()["version"] == 2


@pytest.mark.parametrize("given", ["", "/ref", "/a/b/"])
def test_root_path_is_a_setting(given: str) -> None:
    assert load_config(["--model", "m", "--root-path", given]).root_path == given


def test_a_root_path_without_a_slash_is_refused() -> None:
    with pytest.raises(ValueError, match="root_path"):
        load_config(["--model", "m", "--root-path", "ref"])


@pytest.mark.anyio
async def test_a_broken_host_header_breaks_nothing(engine: FakeEngine) -> None:
    app = create_app(make_config(), lambda: engine)
    async with mounted(in_starlette(app), app) as client:
        for path, status in (("/ref/nothing", 404), ("/ref/get", 404), ("/ref/v1/logprobs", 405)):
            response = await client.get(path, headers={"Host": "["})
            assert response.status_code == status, response.text
            assert json.loads(response.text)["error"]["code"]
