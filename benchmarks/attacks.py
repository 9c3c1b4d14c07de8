"""What a stranger without a key can cost a server: its memory and the latency of /livez, during one attack after another.

    python -m benchmarks.attacks                        starts a server with the demo model, attacks it, prints a table
    python -m benchmarks.attacks --attack headers bodies
    python -m benchmarks.attacks --url http://127.0.0.1:8000 --pid 4711      a server that runs already, on this machine

Memory is the resident set of the server process, read from /proc every 20 ms: before the attack, its peak, and two seconds
after the attackers have hung up. /livez is asked all the while, each time on a connection of its own. Attackers are threads
of this process and take a core themselves: compare two servers on the same machine, not two machines.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

MIB = 2**20
Address = tuple[str, int]
POST = b"POST /v1/logprobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@dataclass
class Attacker:
    """One connection. What it sent until the server closed it, and the status that the server gave."""

    address: Address
    sent: int = 0
    status: str = "-"
    socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.socket = socket.create_connection(self.address, timeout=60)

    def send(self, data: bytes, times: int = 1) -> None:
        """Stops as soon as the server closes or answers."""
        self.socket.settimeout(60)
        try:
            for _ in range(times):
                self.socket.sendall(data)
                self.sent += len(data)
        except OSError:
            pass
        self.look()

    def look(self) -> bool:
        """Whether the connection is still open; keeps the status of an answer."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(0)
            while data := self.socket.recv(65536):
                if data.startswith(b"HTTP/1.1 "):
                    self.status = data[9:12].decode()
            return False
        return True


def _all(address: Address, count: int, work: Callable[[Attacker], None]) -> list[Attacker]:
    with ThreadPoolExecutor(count) as pool:
        attackers = list(pool.map(lambda _: Attacker(address), range(count)))
        list(pool.map(work, attackers))
    return attackers


def headers(address: Address) -> list[Attacker]:
    """300 MB of headers over 5 connections"""
    line = b"x-attack: " + b"v" * 8000 + b"\r\n"

    def work(one: Attacker) -> None:
        one.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        one.send(line, 60_000_000 // len(line))

    return _all(address, 5, work)


def tiny_headers(address: Address) -> list[Attacker]:
    """6 million tiny headers on one connection"""

    def work(one: Attacker) -> None:
        one.send(b"GET /livez HTTP/1.1\r\n")
        one.send(b"a:b\r\n" * 1000, 6000)

    return _all(address, 1, work)


def bodies(address: Address) -> list[Attacker]:
    """20 unfinished bodies of 59 MB, held"""

    def work(one: Attacker) -> None:
        one.send(POST + b"Content-Length: 60000000\r\n\r\n")
        one.send(b" " * MIB, 56)

    return _all(address, 20, work)


def half_requests(address: Address) -> list[Attacker]:
    """1,000 connections with half a request line"""
    attackers = [Attacker(address) for _ in range(1000)]
    for one in attackers:
        one.socket.sendall(b"GET /livez HT")
    return attackers


def trailers(address: Address) -> list[Attacker]:
    """100 MB of trailers over 5 connections"""

    def work(one: Attacker) -> None:
        one.send(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        one.send(b"a:b\r\n" * 1000, 4000)

    return _all(address, 5, work)


def bombs(address: Address) -> list[Attacker]:
    """20 gzip bombs of 1 GB"""
    bomb = gzip.compress(b" " * 1000 * MIB, 6)

    def work(one: Attacker) -> None:
        one.send(POST + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb)
        one.socket.settimeout(60)
        with contextlib.suppress(OSError):
            one.status = one.socket.recv(65536)[9:12].decode()

    return _all(address, 20, work)


def unread_answers(address: Address) -> list[Attacker]:
    """50 connections that ask 500 times for the API's description and read none"""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    attackers = [Attacker(address) for _ in range(50)]
    for one in attackers:
        one.socket.settimeout(0.05)
        with contextlib.suppress(OSError):
            for _ in range(500):
                one.socket.sendall(ask)
    return attackers


ATTACKS = {a.__name__: a for a in (headers, tiny_headers, bodies, half_requests, trailers, bombs, unread_answers)}


class Watch:
    """Peak memory and /livez latencies while it is open."""

    def __init__(self, pid: int, address: Address) -> None:
        self._pid, self._address = pid, address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=f) for f in (self._memory, self._livez)]
        self.peak = 0.0
        self.latencies: list[float] = []
        self.failures = 0

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _memory(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, resident(self._pid))

    def _livez(self) -> None:
        while not self._stop.wait(0.05):
            started = time.perf_counter()
            try:
                with socket.create_connection(self._address, timeout=60) as connection:
                    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    good = connection.recv(4096).startswith(b"HTTP/1.1 200")
            except OSError:
                good = False
            self.failures += not good
            self.latencies.append(time.perf_counter() - started)


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def started(model: str, options: list[str]) -> Iterator[tuple[int, Address]]:
    """A server of its own on a free port, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "grpo_server", "--model", model, "--port", str(port), "--log-level", "error"]
    with subprocess.Popen([*command, *options]) as process:
        try:
            while not _ready(port):
                if process.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.5)
            yield process.pid, ("127.0.0.1", port)
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def tried(attack: Callable[[Address], list[Attacker]], pid: int, address: Address, hold: float) -> list[str]:
    """One row of the table."""
    before = resident(pid)
    with Watch(pid, address) as watch:
        attackers = attack(address)
        time.sleep(hold)
        still_open = sum(a.look() for a in attackers)
    for one in attackers:
        one.socket.close()
    time.sleep(2)
    statuses = sorted({a.status for a in attackers} - {"-"})
    return [
        attack.__doc__ or "",
        f"{before:.0f}",
        f"+{watch.peak - before:.0f}",
        f"+{resident(pid) - before:.0f}",
        f"{statistics.median(watch.latencies) * 1000:.0f}",
        f"{max(watch.latencies) * 1000:.0f}",
        str(watch.failures),
        f"{still_open} of {len(attackers)}",
        ", ".join(statuses) or "-",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--model", default="demo", help="what the server serves")
    parser.add_argument("--hold", type=float, default=35.0, help="seconds that attackers stay after their attack")
    parser.add_argument("--url", help="attack this server in place of an own one")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--server", nargs="*", default=[], help="options for the own server, without --")
    given = parser.parse_args()
    if (given.url is None) != (given.pid is None):
        parser.error("--url and --pid go together")

    table = Table("attack", "before MB", "peak", "after", "/livez ms", "worst", "failed", "still open", "answers")
    with contextlib.ExitStack() as stack:
        if given.url is None:
            options = [f"--{option}" for option in given.server]
            pid, address = stack.enter_context(started(given.model, options))
        else:
            host, _, port = given.url.removeprefix("http://").rstrip("/").rpartition(":")
            pid, address = given.pid, (host, int(port))
        for name in given.attack:
            table.add_row(*tried(ATTACKS[name], pid, address, given.hold))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
