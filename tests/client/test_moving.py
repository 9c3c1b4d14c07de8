"""Several servers move together or not at all. The servers are fakes that hold, serve and forget as a grpo-server does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from grpo_client import (
    AsyncReferenceClient,
    ConnectionFailed,
    DeadlineExceeded,
    FingerprintMismatch,
    GrpoClientError,
    ReferenceClient,
    ReferenceInfo,
    RequestRefused,
    RetryPolicy,
    Unavailable,
    cli,
)
from typer.testing import CliRunner


@dataclass
class Replica:
    """before(verb): may answer in its place, or raise."""

    refusal: Callable[..., httpx.Response]
    model: str = "base"
    version: int = 1
    held: tuple[int, str] | None = None
    before: Callable[[str], httpx.Response | None] = lambda verb: None
    verbs: list[str] = field(default_factory=list)

    def info(self, version: int, model: str) -> httpx.Response:
        info = ReferenceInfo(
            model=model,
            fingerprint=f"of {model}",
            version=version,
            dtype="float32",
            mode="exact",
            max_length=9,
            vocab_size=9,
        )
        return httpx.Response(200, content=info.model_dump_json())

    def __call__(self, request: httpx.Request) -> httpx.Response:
        asked: dict[str, Any] = json.loads(request.content) if request.content else {}
        verb = {"GET": "look", "DELETE": "end"}.get(request.method) or (
            "commit" if request.url.path.endswith("/commit") else "hold" if asked.get("hold") else "move"
        )
        self.verbs.append(verb)
        if (answer := self.before(verb)) is not None:
            return answer
        made = f"{self.model}*{asked['decay']}+{asked['model']}" if "decay" in asked else asked.get("model", "")
        match verb:
            case "hold":
                self.held = (asked["version"], made)
                return self.info(*self.held)
            case "commit" if self.held is not None and self.held[0] == asked["version"]:
                (self.version, self.model), self.held = self.held, None
            case "commit" if self.version != asked["version"]:
                return self.refusal(409, "not held here", "not_held")
            case "end":
                self.held = None
                return httpx.Response(200)
            case "move":
                self.model, self.version = made, self.version + 1
        return self.info(self.version, self.model)

    @property
    def hosts(self) -> tuple[str, int]:
        return self.model, self.version


URLS = ["http://a", "http://b", "http://c"]


@pytest.fixture
def replicas(refusal) -> dict[str, Replica]:
    return {url: Replica(refusal) for url in URLS}


@pytest.fixture(params=["sync", "async"])
def move(request: pytest.FixtureRequest, replicas, time) -> Callable[..., ReferenceInfo]:
    def handler(asked: httpx.Request) -> httpx.Response:
        return replicas[f"http://{asked.url.host}"](asked)

    async def later(asked: httpx.Request) -> httpx.Response:
        return handler(asked)

    def moved(*arguments: Any, urls: list[str] = URLS, **options: Any) -> ReferenceInfo:
        retry = RetryPolicy(max_wait=100.0, clock=time.clock)
        if request.param == "sync":
            with ReferenceClient(urls, transport=httpx.MockTransport(handler), sleep=time.sleep, retry=retry) as client:
                return client.move(*arguments, **options)

        async def run() -> ReferenceInfo:
            transport = httpx.MockTransport(later)
            async with AsyncReferenceClient(urls, transport=transport, sleep=time.async_sleep, retry=retry) as client:
                return await client.move(*arguments, **options)

        return asyncio.run(run())

    return moved


def raises(error: Exception) -> Callable[[str], None]:
    def act(verb: str) -> None:
        raise error

    return act


def test_all_move_under_one_version_above_all_others(move, replicas) -> None:
    replicas["http://b"].version = 6
    info = move("new")
    assert (info.model, info.version) == ("new", 7)
    assert {replica.hosts for replica in replicas.values()} == {("new", 7)}
    assert all(replica.verbs == ["look", "hold", "commit"] for replica in replicas.values())


def test_one_server_needs_no_word(move, replicas) -> None:
    assert move("new", decay=0.5, urls=["http://a"]).model == "base*0.5+new"
    assert replicas["http://a"].verbs == ["move"]


def test_an_average_is_the_same_on_all(move, replicas) -> None:
    assert move("new", decay=0.25).version == 2
    assert {replica.hosts for replica in replicas.values()} == {("base*0.25+new", 2)}
    replicas["http://c"].model = "another"
    with pytest.raises(FingerprintMismatch, match="move all to one model first"):
        move("new", decay=0.25)
    assert replicas["http://a"].hosts == ("base*0.25+new", 2)
    assert move("one").version == 3  # which is what mends it


@pytest.mark.parametrize(
    ("answer", "error"), [("refused", RequestRefused), ("busy", Unavailable), ("lost", ConnectionFailed)]
)
def test_when_one_cannot_none_moves(move, replicas, refusal, answer: str, error: type[GrpoClientError]) -> None:
    def before(verb: str) -> httpx.Response | None:
        if verb != "hold":
            return None
        if answer == "lost":
            raise httpx.ReadError("cut off")
        return refusal(422, "no such model") if answer == "refused" else refusal(409, "busy", "swap_under_way")

    replicas["http://b"].before = before
    with pytest.raises(error):
        move("new")
    assert {(*replica.hosts, replica.held) for replica in replicas.values()} == {("base", 1, None)}
    # who is busy may be so with somebody else's; a lost answer may have been a yes
    assert ("end" in replicas["http://b"].verbs) == (answer == "lost")


def test_when_they_would_differ_none_moves(move, replicas) -> None:
    replicas["http://c"].before = lambda verb: replicas["http://c"].info(2, "torn") if verb == "hold" else None
    with pytest.raises(FingerprintMismatch, match=r"make different references of new.*http://c: of torn"):
        move("new")
    assert {replica.hosts for replica in replicas.values()} == {("base", 1)}


def test_a_server_that_is_away_at_the_word_is_waited_for(move, replicas, time) -> None:
    away = iter([httpx.ConnectError("down")] * 3)

    def before(verb: str) -> httpx.Response | None:
        if verb == "commit" and (error := next(away, None)) is not None:
            raise error
        return None

    replicas["http://b"].before = before
    assert move("new").version == 2
    assert len(time.slept) == 3
    assert {replica.hosts for replica in replicas.values()} == {("new", 2)}


def test_a_server_that_lost_what_it_held_brings_it_up_again(move, replicas) -> None:
    """Killed between the two: it comes back with the reference before."""

    def before(verb: str) -> httpx.Response | None:
        if verb == "commit" and replicas["http://b"].verbs.count("commit") == 1:
            replicas["http://b"].held = None
        return None

    replicas["http://b"].before = before
    assert move("new", decay=0.5).version == 2
    assert replicas["http://b"].verbs == ["look", "hold", "commit", "hold", "commit"]
    assert {replica.hosts for replica in replicas.values()} == {("base*0.5+new", 2)}


def test_one_that_never_comes_back_is_an_error_and_the_others_have_moved(move, replicas) -> None:
    def before(verb: str) -> httpx.Response | None:
        if verb == "commit":
            raise httpx.ConnectError("down")
        return None

    replicas["http://b"].before = before
    with pytest.raises(DeadlineExceeded, match="http://b"):
        move("new")
    assert [replicas[url].hosts for url in URLS] == [("new", 2), ("base", 1), ("new", 2)]


def test_the_command(replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def handler(asked: httpx.Request) -> httpx.Response:
        seen.append(asked.headers.get("authorization"))
        return replicas[f"http://{asked.url.host}"](asked)

    open_client = httpx.Client
    monkeypatch.setattr(
        httpx, "Client", lambda **options: open_client(**{**options, "transport": httpx.MockTransport(handler)})
    )
    monkeypatch.setenv("GRPO_ADMIN_KEY", "root")
    done = CliRunner().invoke(cli.app, ["swap", "new", "--url", "http://a", "--url", "http://b"])
    assert done.exit_code == 0, done.output
    assert done.stdout == "new version 2 of new\n"
    assert replicas["http://a"].hosts == replicas["http://b"].hosts == ("new", 2)
    assert set(seen[2:]) == {"Bearer root"}


def test_when_all_refuse_there_is_nothing_to_end(move, replicas, refusal) -> None:
    for replica in replicas.values():
        replica.before = lambda verb: refusal(422, "there is no directory new") if verb == "hold" else None
    with pytest.raises(RequestRefused, match="there is no directory new"):
        move("new")
    assert all(replica.verbs == ["look", "hold"] for replica in replicas.values())
