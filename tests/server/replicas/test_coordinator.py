"""Replicas that change together: real services around fake engines, told what to do without a cluster."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpo_server.app import create_app
from grpo_server.engine.config import EngineConfig
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.phase import Phase
from grpo_server.replicas.coordinator import Coordinator
from grpo_server.replicas.member import Member, Outcome
from grpo_server.swapping.state import StateDir
from grpo_server.swapping.wish import Wish
from server_fakes import FakeEngine, fingerprint, make_config, running

pytestmark = pytest.mark.anyio


@dataclass
class Cluster:
    """before(what, member): what goes wrong there; "dead" for a replica that says nothing any more."""

    state: StateDir | None = None
    members: list[Member] = field(default_factory=list)
    clients: list[httpx.AsyncClient] = field(default_factory=list)
    engines: list[FakeEngine] = field(default_factory=list)
    before: Callable[[str, Member], str | None] = lambda what, member: None
    told: list[str] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(make_config(), self.tell, self.state)

    async def tell(self, what: str, *arguments: Any) -> dict[str, Outcome]:
        self.told.append(what)
        alive = [m for m in self.members if self.before(what, m) != "dead"]
        return dict(await asyncio.gather(*(getattr(m, what)(*arguments) for m in alive)))

    async def start(self, model: str | None = None) -> bool:
        """One more replica; whether it may serve."""
        told = await self.coordinator.to_load()
        kept = Path(told.model, "fake")
        engine = FakeEngine(model or (kept.read_text() if kept.exists() else told.model))
        engine.version = told.version
        app = create_app(make_config(), lambda: engine)
        app.state.service.together = self.coordinator
        self.clients.append(await self.stack.enter_async_context(running(app)))
        self.members.append(Member(f"replica-{len(self.members)}", app.state.service, told))
        self.engines.append(engine)
        member = self.members[-1]
        return await self.coordinator.agrees(member.hosts, engine.info, starts=True)

    def hosts(self) -> list[tuple[str, int]]:
        return [(m.hosts.fingerprint or "", m.hosts.version) for m in self.members]


@asynccontextmanager
async def cluster(size: int, state: StateDir | None = None) -> AsyncIterator[Cluster]:
    made = Cluster(state)
    async with made.stack:
        for _ in range(size):
            assert await made.start()
        yield made


async def test_all_change_and_those_that_come_later_load_the_same() -> None:
    async with cluster(3) as replicas:
        info = await replicas.coordinator.change(Wish("other"))
        assert (info.version, info.fingerprint) == (2, fingerprint("other"))
        assert replicas.hosts() == [(fingerprint("other"), 2)] * 3
        assert await replicas.start()
        assert replicas.hosts()[-1] == (fingerprint("other"), 2)
        assert replicas.told == ["hosted", "hold", "commit"]


async def test_a_replica_with_another_reference_does_not_serve() -> None:
    async with cluster(2) as replicas:
        assert not await replicas.start("another")


async def test_a_route_of_any_replica_changes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    headers = {"Authorization": "Bearer root"}
    async with cluster(2) as replicas:
        client = replicas.clients[1]
        done = await client.post("/admin/reference", json={"model": "other"}, headers=headers)
        assert (done.status_code, done.json()["version"]) == (200, 2)
        assert {v for _, v in replicas.hosts()} == {2}
        for more in ({"hold": True}, {"version": 7}, {"wait": False}):
            refused = await client.post("/admin/reference", json={"model": "x", **more}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, next(iter(more)))
        assert (await client.delete("/admin/reference", headers=headers)).status_code == 404


async def test_one_that_cannot_keeps_all_where_they_are() -> None:
    async with cluster(3) as replicas:
        replicas.engines[1].beside = lambda change, on_stage: _unreadable()
        with pytest.raises(ServiceError, match="half a file"):
            await replicas.coordinator.change(Wish("other"))
        assert replicas.hosts() == [(fingerprint("fake"), 1)] * 3
        assert all(m._service.held is None for m in replicas.members)
        assert replicas.told == ["hosted", "hold", "end"]


def _unreadable() -> Any:
    raise OSError("half a file")


async def test_a_replica_that_dies_in_the_middle_is_replaced_by_one_that_has_changed() -> None:
    async with cluster(3) as replicas:
        replicas.before = lambda what, m: "dead" if what == "commit" and m is replicas.members[0] else None
        await replicas.coordinator.change(Wish("other"))
        assert [v for _, v in replicas.hosts()] == [1, 2, 2]
        dead = replicas.members[0]
        assert not await replicas.coordinator.agrees(dead.hosts, dead._service.engine.info, starts=False)
        assert await replicas.start()


async def test_a_replica_that_missed_a_change_answers_nobody() -> None:
    async with cluster(2) as replicas:
        replicas.before = lambda what, m: "dead" if what == "hold" and m is replicas.members[0] else None
        await replicas.coordinator.change(Wish("other"))
        assert [m.stale for m in replicas.members] == [True, False]
        body = {"groups": [{"prompt": [1], "completions": [[2]]}]}
        answers = [await client.post("/v1/logprobs", json=body) for client in replicas.clients]
        assert [a.status_code for a in answers] == [503, 200]
        assert replicas.members[0]._service.phase is Phase.DRAINING


async def test_an_average_is_kept_for_replicas_to_come(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    async with cluster(2, state) as replicas:
        info = await replicas.coordinator.change(Wish("other", decay=0.5))
        assert info.fingerprint == fingerprint("other*0.5")
        told = await replicas.coordinator.to_load()
        assert Path(told.model).parent == tmp_path / "references"
        assert (told.version, told.fingerprint, told.name) == (2, info.fingerprint, "fake")
        assert await replicas.start()
        assert replicas.hosts() == [(info.fingerprint, 2)] * 3
    state.close()
    again = StateDir(tmp_path)
    after = await Coordinator(make_config(), replicas.tell, again).to_load()
    again.close()
    assert (after.model, after.version, after.fingerprint) == (told.model, 2, info.fingerprint)


async def test_without_a_place_for_it_there_is_no_average() -> None:
    async with cluster(2) as replicas:
        with pytest.raises(ServiceError, match="--state-dir"):
            await replicas.coordinator.change(Wish("other", decay=0.5))
        assert replicas.told == []


async def test_one_change_at_a_time_which_can_be_ended_and_starters_wait_for_it() -> None:
    async with cluster(2) as replicas:
        for engine in replicas.engines:
            engine.hold_change()
        changing = asyncio.create_task(replicas.coordinator.change(Wish("other")))
        for engine in replicas.engines:
            await engine.entered()
        with pytest.raises(ServiceError) as busy:
            await replicas.coordinator.change(Wish("third"))
        assert busy.value.code is ErrorCode.SWAP_UNDER_WAY
        starting = asyncio.create_task(replicas.coordinator.to_load())
        member = replicas.members[0]
        assert await replicas.coordinator.agrees(member.hosts, member._service.engine.info, starts=False)
        ending = asyncio.create_task(replicas.coordinator.cancel())
        with pytest.raises(ServiceError) as ended:
            await changing
        await ending
        for engine in replicas.engines:
            engine.let_go()
        assert ended.value.code is ErrorCode.SWAP_CANCELLED
        assert (await starting).version == 1
        assert replicas.hosts() == [(fingerprint("fake"), 1)] * 2


async def test_a_coordinator_that_begins_anew_believes_the_first_that_asks() -> None:
    async with cluster(2) as replicas:
        await replicas.coordinator.change(Wish("other"))
        anew = Coordinator(make_config(), replicas.tell, None)
        member = replicas.members[0]
        assert await anew.agrees(member.hosts, member._service.engine.info, starts=False)
        told = await anew.to_load()
        assert (told.model, told.version, told.fingerprint) == ("other", 2, fingerprint("other"))


def test_what_travels_can_travel() -> None:
    error = ServiceError(ErrorCode.NOT_HELD, "not here", param="version", retry_after=2.0)
    back = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (back.code, back.message, back.param, back.retry_after) == (error.code, "not here", "version", 2.0)
    for value in (Wish("m", decay=0.5), EngineConfig("m", version=3)):
        assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301
