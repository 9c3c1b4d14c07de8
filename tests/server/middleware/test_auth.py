"""Keys: who may score, who may administer, and that the gate is closed unless a path is listed as open."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpo_server.app import create_app
from grpo_server.middleware.key_gate import Keys
from server_fakes import FakeEngine, make_config, running, serving
from starlette.types import Message

BODY = {"groups": [{"prompt": [1], "completions": [[2]]}]}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def key_files(tmp_path: Path) -> dict[str, Path]:
    api, admin = tmp_path / "api", tmp_path / "admin"
    api.write_text("# the trainers\nalpha\n\n  beta  \n")
    admin.write_text("root\n")
    return {"api_key_file": api, "admin_key_file": admin}


@pytest.mark.anyio
async def test_without_keys_scoring_is_open_and_admin_is_closed(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        assert (await client.post("/v1/logprobs", json=BODY)).status_code == 200
        # lm-eval sends an empty bearer token when it has no key.
        assert (await client.post("/v1/logprobs", json=BODY, headers=bearer(""))).status_code == 200
        refused = await client.post("/admin/reference", json={"model": "other"}, headers=bearer("x"))
    assert refused.status_code == 403
    assert "--admin-key-file" in refused.json()["error"]["message"]


@pytest.mark.anyio
async def test_everything_that_computes_needs_a_key(engine: FakeEngine, key_files: dict[str, Path]) -> None:
    async with serving(engine, **key_files) as client:
        for key in ("alpha", "beta", "root"):
            assert (await client.post("/v1/logprobs", json=BODY, headers=bearer(key))).status_code == 200
        missing = [{}, bearer(""), {"Authorization": "alpha"}, {"Authorization": "Basic alpha"}]
        wrong = [bearer("alph"), bearer("alphaa"), bearer("alpha beta"), bearer("ALPHA")]
        for headers in (*missing, *wrong):
            response = await client.post("/v1/logprobs", json=BODY, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            error = response.json()["error"]
            code, remedy = (
                ("missing_api_key", "send it as") if headers in missing else ("invalid_api_key", "check it against")
            )
            assert (error["type"], error["code"]) == ("authentication_error", code), headers
            assert remedy in error["message"]
            assert "alpha" not in error["message"]


@pytest.mark.anyio
async def test_the_gate_is_closed_unless_a_path_is_open(engine: FakeEngine, key_files: dict[str, Path]) -> None:
    app = create_app(make_config(**key_files), lambda: engine)
    open_paths = {"/livez", "/readyz", "/health", "/health/", "/metrics", "/docs", "/redoc", "/openapi.json"}
    open_paths |= {"/v2/health/live", "/v2/health/ready"}  # the probes of the Open Inference Protocol
    async with running(app) as client:
        paths = {*open_paths, *app.openapi()["paths"], "/not/a/route", "/livez/../v1/models", "/Livez"}
        for path in paths:
            statuses = {(await client.request(method, path)).status_code for method in ("GET", "POST")}
            if path in open_paths:
                assert 401 not in statuses, path
            else:
                assert statuses == {401}, path


@pytest.mark.anyio
async def test_admin_needs_the_admin_key(engine: FakeEngine, key_files: dict[str, Path]) -> None:
    async with serving(engine, **key_files) as client:
        swap = {"model": "other"}
        assert (await client.post("/admin/reference", json=swap)).status_code == 401
        assert (await client.post("/admin/reference", json=swap, headers=bearer("alpha"))).status_code == 401
        assert engine.info.version == 1
        assert (await client.post("/admin/reference", json=swap, headers=bearer("root"))).status_code == 200
        assert (await client.get("/v1/reference", headers=bearer("alpha"))).json()["version"] == 2


@pytest.mark.anyio
async def test_a_websocket_is_closed_before_anything_sees_it(engine: FakeEngine) -> None:
    app = create_app(make_config(), lambda: engine)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    for path in ("/admin/reference", "/v1/logprobs"):
        await app({"type": "websocket", "path": path, "headers": [], "query_string": b""}, receive, send)
    assert [m["type"] for m in sent] == ["websocket.close"] * 2


def test_keys_come_from_file_and_environment(key_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_API_KEY", "gamma")
    keys = Keys.load(make_config(**key_files))
    assert keys.api == (b"alpha", b"beta", b"gamma")
    assert keys.admin == (b"root",)


def test_keys_are_shown_nowhere(key_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_API_KEY", "gamma")
    config = make_config(**key_files)
    shown = f"{config!r} {config} {config.model_dump_json()} {Keys.load(config)!r}"
    assert "gamma" not in shown
    assert "alpha" not in shown


@pytest.mark.parametrize("content", [None, "", "\n# only a comment\n"])
def test_a_key_file_without_a_key_stops_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="api_key_file"):
        Keys.load(make_config(api_key_file=path))


def test_an_empty_key_in_the_environment_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", " ")
    with pytest.raises(ValueError, match="admin_key"):
        Keys.load(make_config())
