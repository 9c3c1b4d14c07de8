"""What may stand before a body: bytes, number and time; refused in the shape of every error, and the connection is closed."""

from __future__ import annotations

import itertools

import httpx
import pytest
from raw_socket import raw
from server_fakes import FakeEngine, real_server

LIMIT = 4096
START = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


def until_refused(connection, pieces) -> int:  # type: ignore[no-untyped-def]
    """Send pieces until the server closes. The bytes that it took."""
    sent = 0
    for piece in pieces:
        sent += len(piece)
        if not connection.send(piece):
            return sent
    raise AssertionError("the server takes everything")


def test_a_head_within_the_limits_is_served(parser: str) -> None:
    with real_server(FakeEngine(), parser, max_header_bytes=LIMIT, max_headers=30) as url, raw(url) as connection:
        headers = b"".join(b"x-%d: %s\r\n" % (n, b"v" * 100) for n in range(29))
        for _ in range(3):
            connection.send(START + headers + b"\r\n")
            assert connection.answer().status == 200
        connection.send(START)  # in pieces
        for n in range(10):
            connection.send(b"x-%d: %s\r\n" % (n, b"v" * 100))
        connection.send(b"\r\n")
        assert connection.answer().status == 200


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (START, b"x-long: " + b"v" * 1000 + b"\r\n"),
        (START + b"x-endless: ", b"v" * 1000),
        (START, b"x" * 1000),
        (b"GET /livez?q=", b"v" * 1000),
        (b"GET /" + b"p" * 100, b"p" * 1000),
    ],
    ids=["many long headers", "a value without end", "a name without end", "a query without end", "a path without end"],
)
def test_a_head_without_end_is_cut_off(parser: str, begin: bytes, piece: bytes) -> None:
    """The server closes long before a client is done with 100 MB."""
    with real_server(FakeEngine(), parser, max_header_bytes=LIMIT) as url, raw(url) as connection:
        pieces = itertools.chain([begin], itertools.repeat(piece, 100_000))
        assert until_refused(connection, pieces) < 50_000_000
        assert httpx.get(f"{url}/livez").status_code == 200


@pytest.mark.parametrize(
    ("head", "status", "code", "flag"),
    [
        (START + b"x: " + b"v" * 2 * LIMIT, 431, "headers_too_large", "--max-header-bytes"),
        (START + b"a:\r\n" * 31, 431, "headers_too_large", "--max-headers"),
        (b"GET /livez?" + b"q" * 2 * LIMIT, 414, "uri_too_long", "--max-header-bytes"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "malformed_request", "https"),
        (b"GET /livez HTTP/1.1\r\nBroken\r\n\r\n", 400, "malformed_request", "HTTP/1.1"),
    ],
    ids=["bytes", "number", "url", "TLS", "no header"],
)
def test_the_refusal_says_which_limit(head: bytes, status: int, code: str, flag: str) -> None:
    limits = {"max_header_bytes": LIMIT, "max_headers": 30}
    with real_server(FakeEngine(), **limits) as url:
        with raw(url) as connection:
            connection.send(head)
            answer = connection.answer()
            assert (answer.status, answer.error["code"]) == (status, code)
            assert set(answer.error) == {"message", "type", "param", "code"}
            assert flag in answer.error["message"]
            assert answer.headers["connection"] == "close"
            assert connection.closed()
        metrics = httpx.get(f"{url}/metrics").text
        assert f'grpo_server_refusals_total{{reason="{code}"}} 1.0' in metrics


def test_trailers_and_chunk_extensions_are_limited_as_heads_are() -> None:
    chunked = (
        b"POST /v1/logprobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with real_server(FakeEngine(), max_header_bytes=LIMIT, max_headers=30) as url:
        for begin, piece in (
            (chunked + b"1\r\nx\r\n0\r\n", b"trailer: x\r\n"),
            (chunked + b"1\r\nx\r\n0\r\ntrailer: ", b"v" * 1000),
            (chunked + b"1;extension=", b"v" * 1000),
        ):
            with raw(url) as connection:
                pieces = itertools.chain([begin], itertools.repeat(piece, 1_000_000))
                assert until_refused(connection, pieces) < 50_000_000
        assert httpx.get(f"{url}/livez").status_code == 200


def test_a_trailer_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_API_KEY", "alpha")
    body = b'{"groups": [{"prompt": [1], "completions": [[2]]}]}'
    with real_server(FakeEngine()) as url, raw(url) as connection:
        connection.send(
            b"POST /v1/logprobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"%x\r\n%s\r\n0\r\nAuthorization: Bearer alpha\r\n\r\n" % (len(body), body)
        )
        assert connection.answer().status == 401


@pytest.mark.parametrize("begin", [b"G", START, b"POST /v1/logprobs HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"])
def test_half_a_head_is_a_408_and_closed(parser: str, begin: bytes) -> None:
    with real_server(FakeEngine(), parser, header_timeout=0.05) as url, raw(url) as connection:
        connection.send(begin)
        answer = connection.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert "--header-timeout" in answer.error["message"]
        assert connection.closed()


def test_a_head_that_drips_is_not_waited_for(parser: str) -> None:
    """Every byte is progress, and none of them puts the deadline off."""
    with real_server(FakeEngine(), parser, header_timeout=0.2) as url, raw(url) as connection:
        while connection.send(b"x"):
            pass  # as fast as the network takes it
        with raw(url) as other:
            other.send(START)
            while other.send(b"x-a: b\r\n"):
                pass


def test_silence_is_closed_without_a_word(parser: str) -> None:
    with real_server(FakeEngine(), parser, header_timeout=0.05) as url:
        with raw(url) as connection:
            assert connection.closed()
        if parser == "httptools":  # h11 takes no line break before a request: a 400
            with raw(url) as connection:
                connection.send(b"\r\n")  # no beginning of a request yet
                assert connection.closed()


def test_the_second_head_of_a_connection_has_the_same_deadline(parser: str) -> None:
    with real_server(FakeEngine(), parser, header_timeout=0.2) as url, raw(url) as connection:
        for _ in range(3):
            connection.send(START + b"\r\n")
            assert connection.answer().status == 200
        connection.send(START)
        assert connection.answer().status == 408
        assert connection.closed()


def test_many_requests_sent_ahead_are_not_all_taken() -> None:
    engine = FakeEngine()
    engine.hold()
    body = b'{"groups": [{"prompt": [1], "completions": [[2]]}]}'
    post = b"POST /v1/logprobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    with real_server(engine) as url:
        with raw(url) as connection:
            connection.send(post % (len(body), body) + (START + b"\r\n") * 1000)
            assert connection.closed()
        assert httpx.get(f"{url}/livez").status_code == 200
        engine.let_go()
        with raw(url) as connection:
            connection.send((START + b"\r\n") * 20)
            assert [connection.answer().status for _ in range(20)] == [200] * 20


def test_what_follows_a_good_request_does_not_spoil_its_answer() -> None:
    with real_server(FakeEngine()) as url, raw(url) as connection:
        connection.send(START + b"\r\n" + b"\x00\x01\x02 nonsense\r\n\r\n")
        assert connection.answer().status == 200
        assert connection.closed()


def test_an_upgrade_is_answered_as_a_plain_request(parser: str) -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    )
    with real_server(FakeEngine(), parser) as url, raw(url) as connection:
        connection.send(START + upgrade)
        assert connection.answer().status == 200
