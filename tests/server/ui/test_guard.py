"""A page of another site gets no answer from /ui/api, whatever name it found for this server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from fastapi import FastAPI
from grpo_server.app import create_app
from grpo_server.routes.ui.guard import api_router
from server_fakes import FakeEngine, make_config, running


def app_with_a_question(engine: FakeEngine, **settings: object) -> FastAPI:
    app = create_app(make_config(**settings), lambda: engine)
    router = api_router()

    @router.get("/question")
    async def question() -> dict[str, int]:
        return {"answer": 42}

    app.include_router(router)
    return app


async def status(app: FastAPI, **headers: str) -> int:
    async with running(app) as client:
        return (await client.get("/ui/api/question", headers=headers)).status_code


@pytest.mark.anyio
@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "127.0.0.1:8000",
        "[::1]:8000",
        "10.1.2.3",
        "gpu-box:8000",
        "a.localhost",
        "LOCALHOST",
    ],
)
async def test_own_names_are_answered(engine: FakeEngine, host: str) -> None:
    assert await status(app_with_a_question(engine), Host=host) == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "[oops", "a@b.example"],
)
async def test_a_name_that_somebody_may_have_pointed_here_is_refused(engine: FakeEngine, host: str) -> None:
    app = app_with_a_question(engine)
    async with running(app) as client:
        answer = await client.get("/ui/api/question", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
    assert "--ui-hosts" in answer.json()["error"]["message"]


@pytest.mark.anyio
async def test_names_that_were_given_are_answered(engine: FakeEngine) -> None:
    for host in ("ref.corp.example", "ref.corp.example.:443", "box.corp.example:8000", socket.gethostname()):
        app = app_with_a_question(engine, ui_hosts=("Ref.Corp.Example",), host="box.corp.example")
        assert await status(app, Host=host) == 200


@pytest.mark.anyio
@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
async def test_a_request_that_a_page_of_another_site_made_is_refused(engine: FakeEngine, site: str) -> None:
    assert await status(app_with_a_question(engine), **{"Sec-Fetch-Site": site}) == 403


@pytest.mark.anyio
async def test_a_page_of_ours_is_answered_and_an_origin_from_elsewhere_is_not(engine: FakeEngine) -> None:
    own = {"Host": "localhost:8000", "Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8000"}
    assert await status(app_with_a_question(engine), **own) == 200
    for origin in ("http://localhost:9000", "http://evil.example", "null"):
        assert await status(app_with_a_question(engine), **(own | {"Origin": origin})) == 403


@pytest.mark.anyio
async def test_the_key_comes_first(engine: FakeEngine, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alpha\n")
    assert await status(app_with_a_question(engine, api_key_file=keys)) == 401
    assert await status(app_with_a_question(engine, api_key_file=keys), Authorization="Bearer alpha") == 200
