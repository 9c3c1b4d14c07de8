"""Bodies over real sockets: counted together while they arrive, held to a pace, and left alone while they progress."""

from __future__ import annotations

import contextlib
import re
import time

import httpx
import pytest
from raw_socket import Raw, raw
from server_fakes import PATIENCE, FakeEngine, real_server

MIB = 2**20
GOOD = b'{"groups": [{"prompt": [1], "completions": [[2]]}]}'


def head(length: int, *more: bytes) -> bytes:
    lines = [
        b"POST /v1/logprobs HTTP/1.1",
        b"Host: x",
        b"Content-Type: application/json",
        b"Content-Length: %d" % length,
    ]
    return b"\r\n".join([*lines, *more, b"", b""])


def test_unfinished_bodies_share_one_limit(parser: str) -> None:
    """Five of 800 KB may lie in a limit of 4 MiB; the next is told to come back, and has its place when one is gone."""
    with real_server(FakeEngine(), parser, max_queue_bytes=4 * MIB) as url, contextlib.ExitStack() as stack:
        held = [stack.enter_context(raw(url)) for _ in range(5)]
        for connection in held:
            connection.send(head(10**6) + b" " * 800_000)
        _until_held(url, 4_000_000)
        with raw(url) as late:
            refused = _until(late, 429)
        assert refused.error["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert "--max-queue-bytes" in refused.error["message"]
        assert httpx.get(f"{url}/livez").status_code == 200
        held[0].close()
        _until_taken(url)
        _until_held(url, 3_200_000)
        for connection in held[1:]:  # nobody who was let in is harmed
            connection.send(GOOD.rjust(200_000))
            assert connection.answer().status == 200


def _until(connection: Raw, status: int):  # type: ignore[no-untyped-def]
    connection.send(head(10**6) + b" " * (10**6 - 1))
    answer = connection.answer()
    assert answer.status == status
    return answer


def _until_held(url: str, nbytes: int) -> None:
    for _ in range(10_000):
        found = re.search(r"^grpo_server_body_bytes (\S+)", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        if found and float(found[1]) == nbytes:
            return
    raise AssertionError(f"the server never held {nbytes} bytes")


def _until_taken(url: str) -> None:
    """The server learns of a closed connection in its own time: ask until it has."""
    for _ in range(1000):
        with httpx.Client(base_url=url) as client:
            body = GOOD.rjust(800_000)
            if (
                client.post("/v1/logprobs", content=body, headers={"Content-Type": "application/json"}).status_code
                == 200
            ):
                return
    raise AssertionError("the room never came free")


def test_what_was_held_is_given_back_however_a_request_ends() -> None:
    with (
        real_server(FakeEngine(), max_queue_bytes=MIB, max_request_bytes=2 * MIB) as url,
        httpx.Client(base_url=url) as client,
    ):
        headers = {"Content-Type": "application/json"}
        for _ in range(5):
            assert client.post("/v1/logprobs", content=GOOD.rjust(900_000), headers=headers).status_code == 200
            assert client.post("/v1/logprobs", content=b"{".rjust(900_000), headers=headers).status_code == 400
            assert client.post("/tokenize", content=b"{".rjust(900_000), headers=headers).status_code == 400
            too_large = client.post("/v1/logprobs", content=GOOD.rjust(MIB + 1), headers=headers)
            assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "request_too_large")
            with raw(url) as connection:
                connection.send(head(10**6) + b" " * 900_000)
            _until_taken(url)


def test_a_body_that_stands_still_is_a_408(parser: str) -> None:
    with real_server(FakeEngine(), parser, stall_timeout=0.1) as url, raw(url) as connection:
        connection.send(head(10**6) + b" " * 500_000)
        answer = connection.answer()
        assert (answer.status, answer.error["code"], answer.error["param"]) == (408, "request_timeout", "body")
        assert "--stall-timeout" in answer.error["message"]
        assert connection.closed()


def test_a_chunked_body_that_drips_is_a_408() -> None:
    start = (
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with real_server(FakeEngine(), stall_timeout=2.0) as url, raw(url) as connection:
        connection.send(start)
        connection.socket.settimeout(0.1)
        answered = False
        while not answered:  # a byte each time that nothing was heard
            connection.send(b"1\r\n \r\n")
            with contextlib.suppress(TimeoutError):
                answered = connection.socket.recv(12) == b"HTTP/1.1 408"


def test_a_slow_body_that_progresses_is_waited_for() -> None:
    """Many times longer than the stall timeout, in small pieces."""
    with real_server(FakeEngine(), stall_timeout=0.5) as url, raw(url) as connection:
        connection.send(head(20 * 500))
        body = GOOD.rjust(20 * 500)
        for n in range(20):
            connection.send(body[n * 500 : (n + 1) * 500])
            time.sleep(0.1)  # the one thing that this is about
        assert connection.answer().status == 200


def test_expect_100_continue_is_answered_before_the_body(parser: str) -> None:
    with real_server(FakeEngine(), parser) as url, raw(url) as connection:
        connection.send(head(len(GOOD), b"Expect: 100-continue"))
        assert connection.answer().status == 100
        connection.send(GOOD)
        assert connection.answer().status == 200


def test_a_stranger_is_refused_before_the_body_is_read(monkeypatch: pytest.MonkeyPatch, parser: str) -> None:
    monkeypatch.setenv("GRPO_SERVER_API_KEY", "alpha")
    with real_server(FakeEngine(), parser) as url, raw(url) as connection:
        connection.send(head(10**6, b"Expect: 100-continue"))
        assert connection.answer().status == 401


def test_the_rest_of_a_refused_body_is_not_waited_for_for_ever(parser: str) -> None:
    with real_server(FakeEngine(), parser, max_request_bytes=1000, stall_timeout=0.3) as url, raw(url) as connection:
        connection.send(head(10**9))
        assert connection.answer().status == 413
        while connection.send(b" " * 1000):
            pass
        assert connection.closed()
        assert httpx.get(f"{url}/livez").status_code == 200


def test_who_leaves_in_the_middle_of_a_body_is_a_499_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with real_server(FakeEngine()) as url:
        for path in (b"/v1/logprobs", b"/tokenize"):
            with raw(url) as connection:
                connection.send(head(1000).replace(b"/v1/logprobs", path) + b" " * 100)
                _seen(url)
        for _ in range(1000):
            if httpx.get(f"{url}/metrics").text.count('status="499"} 1.0') == 2:
                break
        else:
            raise AssertionError("nobody left")
    assert "Traceback" not in caplog.text
    assert "unexpected" not in caplog.text


def _seen(url: str) -> None:
    """A round trip on another connection: what was sent before has been read."""
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        for _ in range(5):
            client.get("/livez")
