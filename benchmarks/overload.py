"""Many clients at many times the capacity: nothing is lost, nothing is a 5xx, every refusal says when to come back.

    python -m benchmarks.overload --seconds 120 --clients 32 --times 10
    python -m benchmarks.overload --apart          the server on one core, the clients on another: neither takes the other's

Capacity is measured first, with as many clients as keep the server busy. Then requests arrive at `times` that rate from
`clients` clients, and one in ten of the refused does what the 429 tells it. Goodput is what was answered per second while
requests came, from the first batch of answers to the last, over capacity; `Retry-After` is right when the retry at that
moment is accepted, be it after the others have gone.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from grpo_client import wire_tensors
from grpo_client.protocol import MEDIA_TENSORS, ROUTE_LOGPROBS
from rich.console import Console

from .contenders import server
from .lean_http import LeanHttp, Reply, connected
from .workloads import Workload, client_tokens

SMALL = Workload("one group of 4, 32 + 16", 1, 4, (32, 32), (16, 16))
HEADERS = {"Content-Type": MEDIA_TENSORS, "Accept": MEDIA_TENSORS}


def bodies(count: int, seed: int) -> list[bytes]:
    """Requests that differ, ready to be sent."""
    return [wire_tensors.encode_request(SMALL.request(seed + n)) for n in range(count)]


@dataclass
class Tally:
    """Answers by status, and when those came that are scores (seconds of perf_counter)."""

    statuses: Counter[str] = field(default_factory=Counter[str])
    answered: list[float] = field(default_factory=list[float])

    def add(self, reply: Reply, again: bool = False) -> None:
        self.statuses[f"retried: {reply.status}" if again else str(reply.status)] += 1
        if reply.status == 200:
            assert len(wire_tensors.decode_result(reply.body).logprobs) == 64
            self.answered.append(time.perf_counter())

    def rate(self, until: float = math.inf) -> float:
        """Answers a second. They come in batches: those of the first second begin the count and are not in it."""
        times = sorted(t for t in self.answered if t <= until)
        begin = max(t for t in times if t <= times[0] + 1)
        return sum(t > begin for t in times) / (times[-1] - begin)


async def ask(http: LeanHttp, body: bytes, tally: Tally, retry: bool) -> None:
    """One question; when refused and `retry`, once more after the time that the refusal names."""
    reply = await http.post(ROUTE_LOGPROBS, body, HEADERS)
    tally.add(reply)
    if reply.status == 429 and retry:
        await asyncio.sleep(float(reply.headers["retry-after"]))
        tally.add(await http.post(ROUTE_LOGPROBS, body, HEADERS), again=True)


async def capacity(http: LeanHttp, seconds: float) -> float:
    """Requests answered a second by a server that is never idle and never full."""
    tally = Tally()
    unsent = iter(bodies(10_000, seed=0))
    stop = time.perf_counter() + seconds

    async def worker() -> None:
        while time.perf_counter() < stop:
            await ask(http, next(unsent), tally, retry=False)

    await asyncio.gather(*(worker() for _ in range(16)))
    return tally.rate(stop)


async def overload(http: LeanHttp, rate: float, seconds: float, clients: int) -> tuple[Tally, float]:
    """`clients` clients that together ask `rate` times a second, whatever the answers do; and the answers a second."""
    tally = Tally()
    per_client = math.ceil(rate * seconds / clients)
    prepared = [bodies(per_client, seed=(n + 1) * 1_000_000) for n in range(clients)]
    start = time.perf_counter()

    async def client(n: int) -> None:
        asked: list[asyncio.Task[None]] = []
        for k, body in enumerate(prepared[n]):
            due = start + (k + n / clients) * clients / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(ask(http, body, tally, retry=k % 10 == 0)))
        await asyncio.gather(*asked)

    await asyncio.gather(*(client(n) for n in range(clients)))
    return tally, tally.rate(start + seconds)


async def run(args: argparse.Namespace, url: str, pid: int) -> None:
    console = Console()

    def resident() -> float:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    async with connected(url) as http:
        full = await capacity(http, args.seconds / 4)
        before, used = resident(), time.process_time()
        tally, answered = await overload(http, full * args.times, args.seconds, args.clients)
        after = resident()
        console.print(f"capacity {full:.1f} requests/s ({full * client_tokens(SMALL.request()):,.0f} client tokens/s)")
        console.print(f"asked {full * args.times:.0f}/s for {args.seconds:.0f} s: {dict(tally.statuses)}")
        console.print(f"the generator took {time.process_time() - used:.0f} s of a core")
        console.print(f"goodput {answered / full:.0%} of capacity; resident {before:.0f} -> {after:.0f} MB")
        lost = [status for status in tally.statuses if status.removeprefix("retried: ")[0] == "5"]
        console.print(f"5xx: {lost or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--apart", action="store_true", help="server and clients on a core each (Linux)")
    args = parser.parse_args()
    # room for some ten seconds of work: what comes on top must be refused
    limits = ("--max-batch-tokens", "2048", "--max-queue-tokens", "4096")
    with server(*limits, *(("--threads", "1") if args.apart else ())) as (url, pid):
        if args.apart:
            pin(pid)
        asyncio.run(run(args, url, pid))


def pin(server_pid: int) -> None:
    """The server's threads to one core, this process to another."""
    first, second, *_ = sorted(os.sched_getaffinity(0))
    for thread in Path(f"/proc/{server_pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {first})
    os.sched_setaffinity(0, {second})


if __name__ == "__main__":
    main()
