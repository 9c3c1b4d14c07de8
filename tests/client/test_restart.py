"""A server killed half way and started again on the same port: the caller waits, and the numbers are the same."""

from __future__ import annotations

import socket

import pytest
from grpo_client import ConnectionFailed, ReferenceClient, RetryPolicy, ScoreRequest

PROMPTS = [[1, 2, 3], [7]]
COMPLETIONS = [[[4, 5], [], [6]], [[8, 9, 10]]]


def test_a_killed_and_restarted_server_is_waited_for(reference, scored, socket_server) -> None:
    server = socket_server(0, reference, die_on=1)
    port = server.server_port
    waits: list[float] = []
    restarted = []

    def wait(seconds: float) -> None:
        """Stands for the time that passes: the server goes away at the first wait and is back at the third."""
        waits.append(seconds)
        if len(waits) == 1:
            server.stop()
        if len(waits) == 3:
            restarted.append(socket_server(port, reference))

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
