"""A server killed half way and started again on the same port: the caller waits, and the numbers are the same."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from grpo_client import ConnectionFailed, ReferenceClient, RetryPolicy, ScoreRequest

PROMPTS = [[1, 2, 3], [7]]
COMPLETIONS = [[[4, 5], [], [6]], [[8, 9, 10]]]


class SocketServer(ThreadingHTTPServer):
    """The fake reference on a real socket. `die_on`: cut the line in the middle of the answer to that request."""

    daemon_threads = True

    def __init__(self, port: int, handle: Callable[[httpx.Request], httpx.Response], die_on: int | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.handle_request_ = handle
        self.die_on = die_on
        self.died = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: SocketServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        request = httpx.Request("POST", f"http://fake{self.path}", headers=dict(self.headers), content=content)
        answer = self.server.handle_request_(request)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers["content-type"])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if self.server.die_on == 0:
            self.wfile.write(answer.content[: len(answer.content) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            self.server.died.set()
            return
        if self.server.die_on is not None:
            self.server.die_on -= 1
        self.wfile.write(answer.content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its failures."""


def test_a_killed_and_restarted_server_is_waited_for(reference, scored) -> None:
    server = SocketServer(0, reference, die_on=1)
    port = server.server_port
    waits: list[float] = []
    restarted: list[SocketServer] = []

    def wait(seconds: float) -> None:
        """Stands for the time that passes: the server goes away at the first wait and is back at the third."""
        waits.append(seconds)
        if len(waits) == 1:
            server.stop()
        if len(waits) == 3:
            restarted.append(SocketServer(port, reference))

    with ReferenceClient(
        f"http://127.0.0.1:{port}", sleep=wait, max_in_flight=1, max_request_tokens=4, retry=RetryPolicy(max_wait=600)
    ) as client:
        result = client.score(PROMPTS, COMPLETIONS)
    assert server.died.is_set()
    assert len(waits) == 3, "cut off, refused, refused, answered"
    assert result.logprobs.tolist() == scored(ScoreRequest.of(PROMPTS, COMPLETIONS)).logprobs.tolist()
    restarted[0].stop()


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: refuses connections, and nobody else gets it
        with (
            ReferenceClient(f"http://127.0.0.1:{free.getsockname()[1]}", max_wait=0) as client,
            pytest.raises(ConnectionFailed, match="ConnectError"),
        ):
            client.info()
