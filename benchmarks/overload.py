"""Many clients at many times the capacity: nothing is lost, nothing is a 5xx, every refusal says when to come back.

    python -m benchmarks.overload --seconds 120 --clients 32 --times 10

Capacity is measured first, with as many clients as keep the server busy. Then requests arrive at `times` that rate from
`clients` clients, and one in ten of the refused does what the 429 tells it. Goodput is what was answered per second while
requests came, over capacity; `Retry-After` is right when the retry at that moment is accepted, be it after the others have
gone.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import time
from collections import Counter
from pathlib import Path

import httpx
from grpo_client import wire_tensors
from grpo_client.protocol import MEDIA_TENSORS, ROUTE_LOGPROBS
from rich.console import Console

from .contenders import server
from .workloads import Workload, client_tokens

SMALL = Workload("one group of 4, 32 + 16", 1, 4, (32, 32), (16, 16))
HEADERS = {"Content-Type": MEDIA_TENSORS, "Accept": MEDIA_TENSORS}


async def ask(http: httpx.AsyncClient, seed: int, tally: Counter[str], retry: bool, until: float = math.inf) -> None:
    """One question; when refused and `retry`, once more after the time that the refusal names. until: of perf_counter."""
    body = wire_tensors.encode_request(SMALL.request(seed))
    reply = await http.post(ROUTE_LOGPROBS, content=body, headers=HEADERS)
    tally[str(reply.status_code)] += 1
    tally["in time"] += reply.status_code == 200 and time.perf_counter() < until
    if reply.status_code == 200:
        assert len(wire_tensors.decode_result(reply.content).logprobs) == 64
    elif reply.status_code == 429 and retry:
        await asyncio.sleep(float(reply.headers["Retry-After"]))
        again = await http.post(ROUTE_LOGPROBS, content=body, headers=HEADERS)
        tally[f"retried: {again.status_code}"] += 1
        tally["in time"] += again.status_code == 200 and time.perf_counter() < until


async def capacity(http: httpx.AsyncClient, seconds: float) -> float:
    """Requests answered a second by a server that is never idle and never full."""
    tally: Counter[str] = Counter()
    stop = time.perf_counter() + seconds

    async def worker(n: int) -> None:
        seed = n * 1_000_000
        while time.perf_counter() < stop:
            seed += 1
            await ask(http, seed, tally, retry=False)

    start = time.perf_counter()
    await asyncio.gather(*(worker(n) for n in range(16)))
    return tally["200"] / (time.perf_counter() - start)


async def overload(http: httpx.AsyncClient, rate: float, seconds: float, clients: int) -> Counter[str]:
    """`clients` clients that together ask `rate` times a second, whatever the answers do."""
    tally: Counter[str] = Counter()
    start = time.perf_counter()

    async def client(n: int) -> None:
        asked: list[asyncio.Task[None]] = []
        k = 0
        while (due := start + (k + n / clients) * clients / rate) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            question = ask(http, (n + 100) * 1_000_000 + k, tally, retry=k % 10 == 0, until=start + seconds)
            asked.append(asyncio.create_task(question))
            k += 1
        await asyncio.gather(*asked)

    await asyncio.gather(*(client(n) for n in range(clients)))
    return tally


async def run(args: argparse.Namespace, url: str, pid: int) -> None:
    console = Console()

    def resident() -> float:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        full = await capacity(http, args.seconds / 4)
        before = resident()
        tally = await overload(http, full * args.times, args.seconds, args.clients)
        after = resident()
        answered = tally.pop("in time")
        console.print(f"capacity {full:.1f} requests/s ({full * client_tokens(SMALL.request()):,.0f} client tokens/s)")
        console.print(f"asked {full * args.times:.0f}/s for {args.seconds:.0f} s: {dict(tally)}")
        console.print(
            f"goodput {answered / args.seconds / full:.0%} of capacity; resident {before:.0f} -> {after:.0f} MB"
        )
        lost = [status for status in tally if status.removeprefix("retried: ")[0] == "5"]
        console.print(f"5xx: {lost or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--times", type=float, default=10)
    args = parser.parse_args()
    # room for some ten seconds of work: what comes on top must be refused
    with server("--max-batch-tokens", "2048", "--max-queue-tokens", "4096") as (url, pid):
        asyncio.run(run(args, url, pid))


if __name__ == "__main__":
    main()
