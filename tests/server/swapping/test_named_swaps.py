"""A swap and an average of one reference among several: who changes, what is counted, and what a restart finds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from file_engine import FileEngine, checkpoint
from grpo_client import wire_json
from grpo_server.app import create_app
from grpo_server.config import ServerConfig
from grpo_server.swapping.resume import resumed
from grpo_server.swapping.state import StateDir
from server_fakes import ask, fingerprint, make_config, running

pytestmark = pytest.mark.anyio

ADMIN = {"Authorization": "Bearer root"}


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")


def of(tmp_path: Path, **weights: str) -> ServerConfig:
    for directory in weights.values():
        if not (tmp_path / directory).exists():
            checkpoint(tmp_path / directory, directory)
    return make_config(model=tuple(f"{name}={tmp_path / directory}" for name, directory in weights.items()))


def app_of(config: ServerConfig, state: StateDir | None = None) -> FastAPI:
    def load() -> FileEngine:
        told = resumed(config, state)
        engine = FileEngine((Path(told.model) / "weights").read_text())
        engine.served, engine.version = told.served_name, told.version
        return engine

    return create_app(config, load, state=state)


async def hosted(client: httpx.AsyncClient) -> dict[str, tuple[str, int]]:
    told = (await client.get("/v1/references")).json()["references"]
    return {one["model"]: (one["fingerprint"], one["version"]) for one in told}


async def change(client: httpx.AsyncClient, model: Path, **more: Any) -> httpx.Response:
    route = "/admin/reference/ema" if "decay" in more else "/admin/reference"
    return await client.post(route, json={"model": str(model), **more}, headers=ADMIN)


async def test_a_named_one_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    checkpoint(tmp_path / "next", "next")
    async with running(app_of(of(tmp_path, a="first", b="second"))) as client:
        answer = (await change(client, tmp_path / "next", reference="b")).json()
        assert (answer["model"], answer["version"], answer["fingerprint"]) == ("b", 2, fingerprint("next"))
        assert await hosted(client) == {"a": (fingerprint("first"), 1), "b": (fingerprint("next"), 2)}
        swap = (await client.get("/v1/reference", params={"model": "b"})).json()["swap"]
        assert (swap["reference"], swap["state"], swap["version"]) == ("b", "done", 2)
        assert "swap" not in (await client.get("/v1/reference", params={"model": "a"})).json()
        assert (await change(client, tmp_path / "next", reference="b", decay=0.5)).json()["version"] == 3
        assert (await change(client, tmp_path / "next")).json()["version"] == 2  # of the first
        assert (await change(client, tmp_path / "next", reference="d")).status_code == 404


async def test_a_swap_under_load_answers_each_by_what_accepted_it(tmp_path: Path) -> None:
    checkpoint(tmp_path / "next", "next")
    async with running(app_of(of(tmp_path, a="first", b="second"))) as client:
        told: dict[str, set[tuple[int, str]]] = {"a": set(), "b": set()}
        done = False

        async def load(name: str) -> None:
            n = 0
            while not done or n < 3:
                body = wire_json.encode_request(ask(4, 3, start=n, model=name))
                answer = await client.post("/v1/logprobs", content=body, headers={"Content-Type": "application/json"})
                assert answer.status_code == 200
                reference = answer.json()["reference"]
                assert reference["model"] == name
                told[name].add((reference["version"], reference["fingerprint"]))
                n += 1

        loads = [asyncio.create_task(load(name)) for name in ("a", "b", "b")]
        await asyncio.sleep(0)
        assert (await change(client, tmp_path / "next", reference="b")).status_code == 200
        done = True
        await asyncio.gather(*loads)
        body = wire_json.encode_request(ask(4, 3, start=50, model="b"))
        answer = await client.post("/v1/logprobs", content=body, headers={"Content-Type": "application/json"})
        assert answer.json()["reference"]["fingerprint"] == fingerprint("next")
    assert told["a"] == {(1, fingerprint("first"))}
    assert told["b"] <= {(1, fingerprint("second")), (2, fingerprint("next"))}


async def test_each_is_counted_under_its_name(tmp_path: Path) -> None:
    config = of(tmp_path, a="first", b="second").model_copy(update={"cache_bytes": 2**20})
    checkpoint(tmp_path / "next", "next")
    async with running(app_of(config)) as client:
        for name in ("b", "b", "a"):
            body = wire_json.encode_request(ask(4, 3, model=name))
            await client.post("/v1/logprobs", content=body, headers={"Content-Type": "application/json"})
        await change(client, tmp_path / "next", reference="b")
        metrics = (await client.get("/metrics")).text.splitlines()
    for name, of_a, of_b in (
        ("requests_total", 1, 2),
        ("scored_tokens_total", 3, 3),
        ("computed_tokens_total", 7, 7),
        ("cache_hits_total", 0, 1),
        ("cache_misses_total", 1, 1),
        ("version", 1, 2),
        ("ready", 1, 1),
    ):
        assert f'grpo_server_hosted_{name}{{reference="a"}} {of_a}.0' in metrics
        assert f'grpo_server_hosted_{name}{{reference="b"}} {of_b}.0' in metrics
    assert "grpo_server_reference_version 1.0" in metrics


async def test_a_restart_finds_each_as_it_was(tmp_path: Path) -> None:
    checkpoint(tmp_path / "next", "next")
    config = of(tmp_path, a="first", b="second")
    async with running(app_of(config, StateDir(tmp_path / "state"))) as client:
        await change(client, tmp_path / "next", reference="b")
        await change(client, tmp_path / "next", decay=0.5)
        before = await hosted(client)
    assert before == {"a": (fingerprint("first+next"), 2), "b": (fingerprint("next"), 2)}
    (tmp_path / "next" / "weights").unlink()  # it was copied
    async with running(app_of(config, StateDir(tmp_path / "state"))) as client:
        assert await hosted(client) == before
    other = of(tmp_path, a="first", b="third")
    async with running(app_of(other, StateDir(tmp_path / "state"))) as client:
        assert await hosted(client) == {"a": before["a"], "b": (fingerprint("third"), 3)}


async def test_an_adapter_whose_base_was_replaced_is_its_next_version_after_a_restart(tmp_path: Path) -> None:
    lora, changed = checkpoint(tmp_path / "lora", "lora"), checkpoint(tmp_path / "next", "next")
    first = checkpoint(tmp_path / "first", "first")
    config = make_config(model=f"a={first}", adapter=(f"x={lora}",))
    on_first, on_next = (fingerprint(f"{base}+lora") for base in ("first", "next"))
    async with running(app_of(config, StateDir(tmp_path / "state"))) as client:
        assert (await hosted(client))["x"] == (on_first, 1)
        await change(client, changed)
        assert (await hosted(client))["x"] == (on_first, 1)  # it keeps the weights that it was laid on
    for _ in range(2):
        async with running(app_of(config, StateDir(tmp_path / "state"))) as client:
            assert await hosted(client) == {"a": (fingerprint("next"), 2), "x": (on_next, 2)}


async def test_an_adapter_that_was_loaded_while_a_server_served_comes_back(tmp_path: Path) -> None:
    lora = checkpoint(tmp_path / "lora", "lora")
    config = of(tmp_path, a="first")
    asked = {"name": "x", "source": str(lora), "base": "a"}
    async with running(app_of(config, StateDir(tmp_path / "state"))) as client:
        assert (await client.post("/v1/references", json=asked, headers=ADMIN)).status_code < 300
        names = list(await hosted(client))
    (lora / "weights").unlink()  # it was copied
    async with running(app_of(config, StateDir(tmp_path / "state"))) as client:
        assert list(await hosted(client)) == names
        assert (await hosted(client))["x"][1] == 1


async def test_an_adapter_says_on_which_it_is_laid(tmp_path: Path) -> None:
    lora, first = checkpoint(tmp_path / "lora", "lora"), checkpoint(tmp_path / "first", "first")
    second = checkpoint(tmp_path / "second", "second")
    config = make_config(model=(f"a={first}", f"b={second}"), adapter=(f"x={lora}", f"y={lora}@b"))
    async with running(app_of(config)) as client:
        told = (await client.get("/v1/references")).json()["references"]
        assert [(one["model"], one.get("base")) for one in told] == [("a", None), ("b", None), ("x", "a"), ("y", "b")]
        assert "base" not in told[0]
        assert (await client.get("/v1/reference", params={"model": "y"})).json()["base"] == "b"
