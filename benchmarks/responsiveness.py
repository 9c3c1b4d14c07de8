"""How long /livez and a small request wait while somebody sends the worst bodies there are.

    python -m benchmarks.responsiveness [--url http://localhost:8000]

Without --url it starts a server around the demo model. Prints a row a body: its answer, the worst /livez and the worst
request of a few ids beside it, in milliseconds. Other processes on the machine are in the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        "OpenAI: 60 MB of ids": ("/v1/completions", b'{"max_tokens": 0, "prompt_logprobs": 0, "prompt": ' + ids + b"}"),
        "OpenAI: 60 MB of []": ("/v1/completions", b'{"prompt": [' + b"[]," * (20 * MIB) + b"[]]}"),
        "tokenize: 60 MB of []": ("/tokenize", b'{"x": [' + b"[]," * (20 * MIB) + b"[]]}"),
    }


class Watch:
    """Asks over and over, and remembers the longest wait."""

    def __init__(self, url: str, method: str, path: str, body: object = None) -> None:
        self.worst, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url, method, path, body))

    def _run(self, url: str, method: str, path: str, body: object) -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not self._stop.is_set():
                started = time.perf_counter()
                client.request(method, path, json=body)
                self.worst = max(self.worst, time.perf_counter() - started)
                self._stop.wait(0.01)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "grpo_server", "--model", "demo", "--port", "0", "--cache-bytes", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line.split(": ")[1].split()[0] for line in process.stderr if "takes requests" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield url
        finally:
            process.terminate()


def measure(url: str) -> None:
    print(f"{'body':24} {'answer':>22} {'livez ms':>9} {'small ms':>9} {'own s':>7}")
    for name, (path, body) in bodies().items():
        with (
            httpx.Client(base_url=url, timeout=300) as client,
            Watch(url, "GET", "/livez") as livez,
            Watch(url, "POST", "/v1/logprobs", SMALL) as small,
        ):
            time.sleep(0.3)
            livez.worst = small.worst = 0.0
            started = time.perf_counter()
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            seconds = time.perf_counter() - started
        code = answer.json().get("error", {}).get("code", "")
        row = f"{livez.worst * 1000:9.0f} {small.worst * 1000:9.0f} {seconds:7.1f}"
        print(f"{name:24} {answer.status_code:3} {code:>18.18} {row}", flush=True)


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
