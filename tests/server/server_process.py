"""A server in a process of its own, and a request to it from a thread."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
from server_fakes import PATIENCE

# A server around a fake engine that says on stdout when it computes and goes on at a line on stdin.
PROGRAM = """
import sys
from grpo_server import logs
from grpo_server.process import serve
from server_fakes import FakeEngine, make_config

class Held(FakeEngine):
    def compute(self, batch):
        print("computing", flush=True)
        sys.stdin.readline()
        return super().compute(batch)

def load():
    if "{load}" == "fail":
        raise ZeroDivisionError("a bug")
    if "{load}" == "hang":
        print("loading", flush=True)
        sys.stdin.readline()
    return Held()

logs.configure("info", "text")
sys.exit(serve(make_config(port=0, drain_timeout={drain_timeout}), load))
"""


BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}


RAW = json.dumps(BODY).encode()


ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


class Process:
    """A running server; its stdout and stderr as lines to wait for."""

    def __init__(self, load: str = "", drain_timeout: float = PATIENCE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(load=load, drain_timeout=drain_timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENV,
        )
        self.seen: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,)) for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe) -> None:  # type: ignore[no-untyped-def]
        for line in pipe:
            self._lines.put(line)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line not yet seen that matches."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no line matched {pattern!r}; seen: {self.seen}") from None
            self.seen.append(line)
            if found := re.search(pattern, line):
                return found

    def ready(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.wait_for(r"ready after \S+ s: (http://\S+) takes requests")[1], timeout=PATIENCE
        )

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def status(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def post_in_thread(client: httpx.Client) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []

    def post() -> None:
        with contextlib.suppress(httpx.HTTPError):  # the server may leave without an answer
            answers.append(client.post("/v1/logprobs", json=BODY))

    thread = threading.Thread(target=post)
    thread.start()
    return thread, answers
