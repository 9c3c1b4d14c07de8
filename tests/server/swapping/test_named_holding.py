"""A further reference that is held for the word, and servers that change one of theirs together by its name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from file_engine import checkpoint
from grpo_client import AsyncReferenceClient, NotFound, ReferenceInfo
from grpo_server.lifecycle import Service
from server_fakes import fingerprint, running
from test_named_swaps import ADMIN, app_of, change, hosted, of

pytestmark = pytest.mark.anyio

BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}


@pytest.fixture(autouse=True)
def _admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")


async def commit(client: httpx.AsyncClient, version: int, **name: str) -> httpx.Response:
    return await client.post("/admin/reference/commit", json={"version": version, **name}, headers=ADMIN)


async def cancel(client: httpx.AsyncClient, **of_whom: str) -> httpx.Response:
    return await client.delete("/admin/reference", params=of_whom, headers=ADMIN)


async def who(client: httpx.AsyncClient, model: str | None, pin: str | None = None) -> tuple[int, int | str]:
    answer = await client.post("/v1/logprobs", json={**BODY, "model": model, "fingerprint": pin})
    told = answer.json()
    return answer.status_code, told["reference"]["version"] if answer.is_success else told["error"]["code"]


def refused(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def test_what_is_held_under_a_name_answers_who_is_pinned_to_it_under_that_name(tmp_path: Path) -> None:
    new = checkpoint(tmp_path / "new", "new")
    async with running(app_of(of(tmp_path, a="first", b="second"))) as client:
        held = (await change(client, new, reference="b", hold=True, version=5)).json()
        assert (held["model"], held["version"], held["fingerprint"]) == ("b", 5, fingerprint("new"))
        assert await hosted(client) == {"a": (fingerprint("first"), 1), "b": (fingerprint("second"), 1)}
        assert await who(client, "b", fingerprint("new")) == (200, 5)
        assert await who(client, "b", fingerprint("second")) == (200, 1)
        assert await who(client, "b") == (200, 1)
        for name in (None, "a"):
            assert await who(client, name, fingerprint("new")) == (409, "fingerprint_mismatch")
        assert (await commit(client, 5, reference="b")).json() == held
        assert (await commit(client, 5, reference="b")).json() == held
        assert await hosted(client) == {"a": (fingerprint("first"), 1), "b": (fingerprint("new"), 5)}
        assert await who(client, "b", fingerprint("second")) == (409, "fingerprint_mismatch")


async def test_the_word_is_for_the_one_that_it_names(tmp_path: Path) -> None:
    new = checkpoint(tmp_path / "new", "new")
    async with running(app_of(of(tmp_path, a="first", b="second"))) as client:
        await change(client, new, reference="b", hold=True, version=5)
        unnamed = await commit(client, 5)
        assert refused(unnamed) == (409, "not_held", "reference")
        assert 'held for b: say "reference": "b"' in unnamed.json()["error"]["message"]
        assert refused(await commit(client, 4, reference="b")) == (409, "not_held", "version")
        assert refused(await commit(client, 5, reference="c")) == (404, "model_not_found", "reference")
        assert refused(await change(client, new, reference="c")) == (404, "model_not_found", "reference")
        assert refused(await cancel(client, reference="a")) == (404, "not_found", "reference")
        assert await who(client, "b", fingerprint("new")) == (200, 5)


@pytest.mark.parametrize("of_whom", [{}, {"reference": "b"}], ids=["whoever", "by its name"])
async def test_one_that_is_cancelled_is_let_go_of(tmp_path: Path, of_whom: dict[str, str]) -> None:
    new = checkpoint(tmp_path / "new", "new")
    async with running(app_of(of(tmp_path, a="first", b="second"))) as client:
        await change(client, new, reference="b", hold=True)
        assert (await cancel(client, **of_whom)).json()["state"] == "cancelled"
        assert await who(client, "b", fingerprint("new")) == (409, "fingerprint_mismatch")
        assert refused(await commit(client, 2, reference="b")) == (409, "not_held", "version")
        assert await hosted(client) == {"a": (fingerprint("first"), 1), "b": (fingerprint("second"), 1)}
        assert refused(await cancel(client, **of_whom))[:2] == (404, "not_found")


async def test_what_somebody_waits_for_is_not_dropped(tmp_path: Path) -> None:
    new, lora = checkpoint(tmp_path / "new", "new"), checkpoint(tmp_path / "lora", "lora")
    app = app_of(of(tmp_path, a="first", b="second"))
    async with running(app) as client:
        await change(client, new, reference="b", hold=True)
        assert refused(await client.delete("/v1/references/b", headers=ADMIN)) == (409, "swap_under_way", None)
        await commit(client, 2, reference="b")
        service: Service = app.state.service
        base: Any = service.references.named("b").engine
        base.hold_change()
        asked = {"name": "x", "source": str(lora), "base": "b"}
        laid = asyncio.create_task(client.post("/v1/references", json=asked, headers=ADMIN))
        while (under_way := service.swaps.status) is None or under_way.stage != "load":
            await asyncio.sleep(0)
        assert refused(await client.delete("/v1/references/b", headers=ADMIN)) == (409, "swap_under_way", None)
        base.let_go()
        assert (await laid).json()["fingerprint"] == fingerprint("new+lora")
        last = await client.delete("/v1/references/b", headers=ADMIN)
        assert refused(last) == (422, "invalid_value", "name")
        assert "b is the base of x; drop that one first" in last.json()["error"]["message"]


class Cluster(httpx.AsyncBaseTransport):
    """Two servers: http://s1 and http://s2."""

    def __init__(self, **apps: Any) -> None:
        self.apps = {name: httpx.ASGITransport(app) for name, app in apps.items()}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.apps[request.url.host].handle_async_request(request)

    def client(self, model: str) -> AsyncReferenceClient:
        urls = [f"http://{name}" for name in self.apps]
        return AsyncReferenceClient(urls, api_key="root", max_wait=0, model=model, transport=self)


def place(tmp_path: Path, name: str, **weights: str) -> Any:
    (tmp_path / name).mkdir()
    return app_of(of(tmp_path / name, **weights))


async def test_two_servers_move_a_named_one_together(tmp_path: Path) -> None:
    new, next_ = checkpoint(tmp_path / "new", "new"), checkpoint(tmp_path / "next", "next")
    s1, s2 = place(tmp_path, "s1", a="first", b="second"), place(tmp_path, "s2", z="third", b="second")
    async with running(s1) as one, running(s2) as two, Cluster(s1=s1, s2=s2).client("b") as client:
        await change(one, new, reference="b")  # the two differ, and one is ahead
        moved: ReferenceInfo = await client.move(str(new))
        assert (moved.model, moved.version, moved.fingerprint) == ("b", 3, fingerprint("new"))
        moved = await client.move(str(next_), decay=0.5)
        assert (moved.version, moved.fingerprint) == (4, fingerprint("new+next"))
        assert await hosted(one) == {"a": (fingerprint("first"), 1), "b": (fingerprint("new+next"), 4)}
        assert await hosted(two) == {"z": (fingerprint("third"), 1), "b": (fingerprint("new+next"), 4)}


async def test_where_one_server_has_no_such_name_nothing_moves(tmp_path: Path) -> None:
    new = checkpoint(tmp_path / "new", "new")
    s1, s2 = place(tmp_path, "s1", a="first", b="second"), place(tmp_path, "s2", a="first")
    async with running(s1) as one, running(s2) as two, Cluster(s1=s1, s2=s2).client("b") as client:
        with pytest.raises(NotFound, match=r"http://s2/.*grpo-client load b SOURCE --url http://s2\)"):
            await client.move(str(new))
        assert "swap" not in (await one.get("/v1/reference", params={"model": "b"})).json()
        assert await hosted(one) == {"a": (fingerprint("first"), 1), "b": (fingerprint("second"), 1)}
        assert await hosted(two) == {"a": (fingerprint("first"), 1)}
