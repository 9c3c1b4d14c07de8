"""How many connections there are, whose place a newcomer gets, and answers that nobody reads."""

from __future__ import annotations

import contextlib
import resource
import threading

import httpx
import pytest
from grpo_server.connections import files
from grpo_server.connections.house import House, Limits
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.middleware.bodies.budget import ByteBudget
from raw_socket import raw
from server_fakes import PATIENCE, FakeEngine, real_server

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
GOOD = b'{"groups": [{"prompt": [1], "completions": [[2]]}]}'


def test_who_waits_longest_makes_room_and_a_probe_comes_through(parser: str) -> None:
    with real_server(FakeEngine(), parser, max_connections=5) as url, contextlib.ExitStack() as stack:
        used = stack.enter_context(raw(url))
        used.send(GET)
        assert used.answer().status == 200
        silent = []
        for _ in range(4):
            silent.append(stack.enter_context(raw(url)))
            silent[-1].send(b"GET /livez HT")
            used.send(GET)
            assert used.answer().status == 200
        assert httpx.get(f"{url}/livez").status_code == 200
        assert silent[0].closed()
        used.send(GET)  # who finished a request stays before who never did
        assert used.answer().status == 200
        for connection in silent[1:3]:
            assert httpx.get(f"{url}/livez").status_code == 200
            with contextlib.ExitStack() as more:
                more.enter_context(raw(url)).send(b"G")
                used.send(GET)
                assert used.answer().status == 200
            del connection


def test_when_all_are_at_work_the_newcomer_is_told_to_come_back(parser: str) -> None:
    engine = FakeEngine()
    engine.hold()
    with real_server(engine, parser, max_connections=3) as url, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(raw(url)) for _ in range(3)]
        length = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
        for connection in busy:
            connection.send(b"POST /v1/logprobs HTTP/1.1\r\nHost: x\r\n" + length + GOOD)
        answer = _refused(url)
        assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
        assert "--max-connections" in answer.error["message"]
        engine.let_go()
        assert [connection.answer().status for connection in busy] == [200] * 3
        assert httpx.get(f"{url}/livez").status_code == 200


def _refused(url: str):  # type: ignore[no-untyped-def]
    """The server may not have read the busy ones yet: then the newcomer is served in the place of one that it had not."""
    for _ in range(1000):
        with raw(url) as connection:
            connection.send(GET)
            if (answer := connection.answer()).status != 200:
                return answer
    raise AssertionError("there is always room")


def test_a_thousand_trainers_keep_their_connections() -> None:
    with real_server(FakeEngine(), max_connections=4096) as url:
        files.allow_connections(4096)
        with contextlib.ExitStack() as stack:
            trainers = [stack.enter_context(raw(url)) for _ in range(1000)]
            for _ in range(2):
                for trainer in trainers:
                    trainer.send(GET)
                assert {trainer.answer().status for trainer in trainers} == {200}


def test_an_answer_that_nobody_reads_is_given_up_and_its_bytes_are_counted() -> None:
    """300 requests for the OpenAPI document, sent by one who reads none: they fill every buffer on the way."""
    with real_server(FakeEngine(), stall_timeout=0.2) as url, raw(url) as connection:
        connection.socket.settimeout(PATIENCE)
        get = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        done = threading.Event()

        def send() -> None:
            while connection.send(get * 10):
                pass
            done.set()

        thread = threading.Thread(target=send)
        thread.start()
        assert done.wait(PATIENCE), "the server waits for the reader"
        thread.join()
        assert httpx.get(f"{url}/livez").status_code == 200


def test_a_slow_reader_who_reads_is_waited_for() -> None:
    with real_server(FakeEngine(), stall_timeout=0.3) as url, raw(url) as connection:
        whole = len(httpx.get(f"{url}/openapi.json").content)
        connection.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 30)
        assert [len(connection.answer().body) for _ in range(30)] == [whole] * 30


class Place:
    closed = False

    def make_room(self) -> None:
        self.closed = True


def _house(connections: int) -> House:
    return House(Limits(connections, 1, 1, 1.0, 1.0), ByteBudget(100), lambda error: None)


def test_strangers_go_before_the_idle_and_each_in_the_order_in_which_they_began_to_wait() -> None:
    house = _house(3)
    idle, first, second, newcomer = Place(), Place(), Place(), Place()
    house.waits(idle, stranger=False)
    house.waits(first, stranger=True)
    house.waits(second, stranger=True)
    house.waits(first, stranger=True)  # still the same waiting
    house.waits(newcomer, stranger=True)
    gone = []
    for _ in range(3):
        house.enter(newcomer, 4)
        gone += [p for p in (idle, first, second) if p.closed and p not in gone]
    assert gone == [first, second, idle]
    with pytest.raises(ServiceError) as caught:
        house.enter(newcomer, 4)
    assert caught.value.code is ErrorCode.TOO_MANY_CONNECTIONS
    assert not newcomer.closed
    house.enter(newcomer, 3)


def test_the_books_of_bytes() -> None:
    accepted = 0
    budget = ByteBudget(100, lambda: accepted)
    budget.charge(60)
    with pytest.raises(ServiceError) as caught:
        budget.charge(41)
    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert caught.value.retry_after
    assert budget.held == 60
    with pytest.raises(ServiceError) as caught:
        budget.charge(1, so_far=100)
    assert caught.value.code is ErrorCode.REQUEST_TOO_LARGE
    budget.release(60)
    accepted = 50
    with pytest.raises(ServiceError):
        budget.charge(51)
    budget.hold(50)
    assert budget.held == 50


def test_the_limit_on_open_files_is_raised_where_the_system_allows_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    for soft, hard in ((1024, 2**20), (2**20, 2**20), (1024, 2048), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limits=(soft, hard): limits)
        files.allow_connections(4000)
    assert asked == [(4000 + files.OTHER_FILES, 2**20), (2048, 2048)]
    assert "ulimit -n" in caplog.text
