"""How long /livez and a small request wait while somebody sends the worst bodies there are.

    python -m benchmarks.responsiveness [--url http://localhost:8000]

Without --url it starts a server around the demo model. Prints a row a body, and before them one without any: the answer, the
worst /livez and the median request of a few ids beside it, in milliseconds. Where there are two cores the server has all but
the last, and those who ask the last. Other processes on the machine are in the figures: the load is printed with them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from statistics import median

import httpx

MIB = 10**6
SMALL = {"groups": [{"prompt": [1, 2, 3], "completions": [[4, 5, 6]]}], "return": []}
TEXT = "The quick brown fox jumps over the lazy dog. "


def bodies() -> dict[str, tuple[str, bytes]]:
    """Name to path and body."""
    native = "/v1/logprobs"
    ids = b"[" + b"123," * (15 * MIB) + b"1]"
    return {
        "60 MB of []": (native, b'{"groups": [' + b"[]," * (20 * MIB) + b"[]]}"),
        "60 MB of {}": (native, b'{"groups": [' + b"{}," * (20 * MIB) + b"{}]}"),
        "60 MB of ids": (native, b'{"groups": [{"prompt": ' + ids + b', "completions": [[1]]}]}'),
        "60 MB of one string": (native, b'{"groups": "' + b"a" * (60 * MIB) + b'"}'),
        "60 MB of digits": (native, b'{"groups": ' + b"9" * (60 * MIB) + b"}"),
        "30 MB of depth": (native, b'{"groups": ' + b"[" * (30 * MIB)),
        "5 MB of text": (
            native,
            json.dumps({"groups": [{"prompt": (TEXT * 120_000)[: 5 * MIB], "completions": ["a"]}]}).encode(),
        ),
        "65,536 completions": (
            native,
            json.dumps({"groups": [{"prompt": [1], "completions": [[2]]}] * 65_536}).encode(),
        ),
        "OpenAI: 60 MB of ids": ("/v1/completions", b'{"max_tokens": 0, "prompt_logprobs": 0, "prompt": ' + ids + b"}"),
        "OpenAI: 60 MB of []": ("/v1/completions", b'{"prompt": [' + b"[]," * (20 * MIB) + b"[]]}"),
        "tokenize: 60 MB of []": ("/tokenize", b'{"x": [' + b"[]," * (20 * MIB) + b"[]]}"),
    }


class Watch:
    """Asks over and over, in a process of its own, and tells how long each answer took."""

    def __init__(self, url: str) -> None:
        self._mine, theirs = Pipe()
        self._process = Process(target=_watch, args=(url, theirs), daemon=True)

    def __enter__(self) -> Watch:
        self._process.start()
        self._mine.recv()  # it asks
        return self

    def __exit__(self, *_: object) -> None:
        self._mine.send("stop")
        self.livez, self.small = self._mine.recv()
        self._process.join()


def _watch(url: str, pipe: Connection) -> None:
    took: tuple[list[float], list[float]] = ([], [])
    asked = (("GET", "/livez", None), ("POST", "/v1/logprobs", SMALL))
    stop = threading.Event()

    def ask(method: str, path: str, body: object, seconds: list[float]) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not (seconds and stop.wait(0.01)):
                started = time.perf_counter()
                client.request(method, path, json=body)
                seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=ask, args=(*each, s)) for each, s in zip(asked, took, strict=True)]
    for thread in threads:
        thread.start()
    pipe.send("asking")
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join()
    pipe.send(took)


def _cores() -> tuple[set[int], set[int]]:
    """For the server, and for those who ask; the same where there is one."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[:-1] or cores), set(cores[-1:])


@contextmanager
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "grpo_server", "--model", "demo", "--port", "0", "--cache-bytes", "0"]
    theirs, ours = _cores()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, theirs)
        os.sched_setaffinity(0, ours)
        assert process.stderr is not None
        url = next(line.split(": ")[1].split()[0] for line in process.stderr if "takes requests" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield url
        finally:
            process.terminate()


def measure(url: str) -> None:
    print(f"load {os.getloadavg()[0]:.1f}, cores {os.cpu_count()}")
    print(f"{'body':24} {'answer':>22} {'livez worst':>11} {'small median':>12} {'own s':>7}")
    with Watch(url) as quiet:
        time.sleep(3)
    _row("none", "", quiet, 3)
    for name, (path, body) in bodies().items():
        with httpx.Client(base_url=url, timeout=300) as client, Watch(url) as watch:
            started = time.perf_counter()
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            seconds = time.perf_counter() - started
        code = answer.json().get("error", {}).get("code", "")
        _row(name, f"{answer.status_code} {code:.18}", watch, seconds)


def _row(name: str, answer: str, watch: Watch, seconds: float) -> None:
    livez, small = max(watch.livez) * 1000, median(watch.small) * 1000
    print(f"{name:24} {answer:>22} {livez:11.0f} {small:12.0f} {seconds:7.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; one of its own unless given")
    url = parser.parse_args().url
    if url:
        measure(url)
        return
    with server() as own:
        measure(own)


if __name__ == "__main__":
    main()
