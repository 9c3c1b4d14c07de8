"""A server for twenty minutes under steady clients, cancelled requests, bursts over capacity, swaps and mixes: what it holds
of memory, descriptors, threads and asyncio tasks must not grow, and nothing may be lost or come from the wrong reference.

    python -m benchmarks.soak --minutes 20
    python -m benchmarks.soak --minutes 20 --plot docs/images/soak.png --json soak.json

Growth is the median of the slopes between all pairs of samples (Theil and Sen), without the first quarter, in which caches and
the allocator fill and pools start their threads. At the end the load stops, and the descriptors and tasks that are left must be
those that were there before it. Status 1 where something grows, is left, lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import httpx
import numpy as np
from grpo_client import AsyncReferenceClient, wire_tensors
from grpo_client.protocol import MEDIA_TENSORS, ROUTE_LOGPROBS
from rich.console import Console
from rich.live import Live
from rich.table import Table

from .small import KEY, ServerProcess, llama, request
from .watched import MARK

ADMIN = {"Authorization": f"Bearer {KEY}"}
TENSORS = {"Content-Type": MEDIA_TENSORS, "Accept": MEDIA_TENSORS}
REQUESTS = [request(seed, groups=1) for seed in range(6)]
WHAT = ("memory, MB", "descriptors", "threads", "tasks")
# MB an hour: below what an allocator's own noise is over a quarter of an hour.
MOST_GROWTH = 30.0


@dataclass
class Watch:
    """Samples of a process: seconds, then one figure for each of WHAT."""

    server: ServerProcess
    rows: list[tuple[float, ...]] = field(default_factory=list)

    async def sample(self, at: float) -> tuple[float, ...]:
        proc = Path(f"/proc/{self.server.pid}")
        told = self.server.log.stat().st_size
        self.server.send(signal.SIGUSR1)
        status = (proc / "status").read_text()
        memory, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))  # pyright: ignore[reportOptionalSubscript]
        tasks = await self._tasks(told)
        self.rows.append((at, memory / 1024, len(os.listdir(proc / "fd")), threads, tasks))
        return self.rows[-1]

    async def _tasks(self, told: int) -> int:
        while True:
            said = self.server.log.read_bytes()[told:].decode(errors="replace")
            if found := re.findall(rf"{MARK}(\d+)\n", said):
                return int(found[-1])
            await asyncio.sleep(0.05)


@dataclass
class Load:
    """Everything that asks. seen: how often what happened; truth: the first answer to each question of each reference."""

    url: str
    models: Sequence[Path]
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    seen: Counter[str] = field(default_factory=Counter[str])
    truth: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for work in (self.steady, self.steady, self.cancelling, self.cancelling, self.bursts, self.swaps):
                group.create_task(work())

    async def steady(self) -> None:
        """One question after the other, tried again as the client does it. Raises whatever the client raises."""
        async with AsyncReferenceClient(self.url) as client:
            while not self.over.is_set():
                which = self.rng.randrange(len(REQUESTS))
                result = await client.score_request(REQUESTS[which])
                self._check(which, result.reference.fingerprint, result.logprobs)
                self.seen["answered"] += 1

    def _check(self, which: int, fingerprint: str, logprobs: np.ndarray) -> None:
        known = self.truth.setdefault((which, fingerprint), logprobs)
        self.seen["wrong"] += not np.array_equal(known, logprobs)

    async def cancelling(self) -> None:
        """Leaves while the request is on its way, waits or is computed."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            while not self.over.is_set():
                body = wire_tensors.encode_request(request(self.rng.randrange(2**30), groups=1))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.rng.uniform(0, 0.2)):
                        await http.post(ROUTE_LOGPROBS, content=body, headers=TENSORS)
                        self.seen["answered before they left"] += 1
                        continue
                self.seen["cancelled"] += 1

    async def bursts(self) -> None:
        """Four times what the queue takes, every quarter of a minute."""
        limits = httpx.Limits(max_connections=None)
        while not await self._over_within(15):
            bodies = [wire_tensors.encode_request(request(self.rng.randrange(2**30), groups=1)) for _ in range(48)]
            async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as http:
                answers = await asyncio.gather(
                    *(http.post(ROUTE_LOGPROBS, content=body, headers=TENSORS) for body in bodies)
                )
            self.seen.update(f"burst: {answer.status_code}" for answer in answers)

    async def swaps(self) -> None:
        """Swap, mix, and a swap that is ended half way, in turn."""
        async with httpx.AsyncClient(base_url=self.url, timeout=300, headers=ADMIN) as http:
            n = 0
            while not await self._over_within(5):
                n += 1
                body = {"model": str(self.models[n % len(self.models)])}
                if n % 3 == 0:
                    asked = asyncio.create_task(http.post("/admin/reference", json=body))
                    await asyncio.sleep(self.rng.uniform(0, 0.5))
                    await http.delete("/admin/reference")
                    self.seen[f"swap to be ended: {(await asked).status_code}"] += 1
                elif n % 3 == 1:
                    self.seen[f"swap: {(await http.post('/admin/reference', json=body)).status_code}"] += 1
                else:
                    answer = await http.post("/admin/reference/ema", json={**body, "decay": 0.9})
                    self.seen[f"mix: {answer.status_code}"] += 1

    async def _over_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), seconds)
        return self.over.is_set()

    @property
    def failures(self) -> dict[str, int]:
        """What should not have been seen."""
        fine = re.compile(r"answered.*|cancelled|burst: (200|429)|swap: 200|mix: 200|swap to be ended: (200|409)|wrong")
        bad = {what: n for what, n in self.seen.items() if not fine.fullmatch(what)}
        return bad | ({"wrong": self.seen["wrong"]} if self.seen["wrong"] else {})


def growth(rows: Sequence[Sequence[float]], column: int) -> float:
    """The median slope an hour (Theil and Sen) of what is in a column over the seconds in the first."""
    slopes = [(b[column] - a[column]) / (b[0] - a[0]) for a, b in combinations(rows, 2) if b[0] > a[0]]
    return 3600 * float(np.median(slopes)) if slopes else 0.0


async def soak(server: ServerProcess, models: Sequence[Path], minutes: float) -> tuple[Watch, Load, tuple[float, ...]]:
    """The samples under load, what was seen, and a sample when all has been quiet for a while."""
    watch, load = Watch(server), Load(server.url, models)
    began = time.monotonic()
    before = await watch.sample(0.0)
    running = asyncio.create_task(load.run())
    with Live(_table(load, watch), console=Console(stderr=True), refresh_per_second=1) as live:
        while not running.done() and time.monotonic() - began < 60 * minutes:
            await asyncio.wait([running], timeout=5)
            await watch.sample(time.monotonic() - began)
            live.update(_table(load, watch))
    load.over.set()
    await running
    for _ in range(60):  # idle connections of the clients that left are closed by then
        after = await Watch(server).sample(time.monotonic() - began)
        if after[2] <= before[2] and after[4] <= before[4]:
            break
        await asyncio.sleep(2)
    return watch, load, after


def _table(load: Load, watch: Watch) -> Table:
    table = Table("", *WHAT, title=f"{watch.rows[-1][0] / 60:.1f} minutes · {dict(sorted(load.seen.items()))}")
    for name, row in (("at first", watch.rows[0]), ("now", watch.rows[-1])):
        table.add_row(name, *(f"{value:.0f}" for value in row[1:]))
    return table


def judged(watch: Watch, load: Load, after: Sequence[float]) -> tuple[dict[str, object], bool]:
    """The figures, and whether they hold."""
    settled = watch.rows[len(watch.rows) // 4 :]
    slopes = {name: growth(settled, n) for n, name in enumerate(WHAT, 1)}
    left = {name: after[n] - watch.rows[0][n] for n, name in enumerate(WHAT, 1) if name in ("descriptors", "tasks")}
    flat = slopes["memory, MB"] < MOST_GROWTH and slopes["threads"] <= 0
    held = flat and all(n <= 0 for n in left.values()) and not load.failures
    figures: dict[str, object] = {
        "minutes": watch.rows[-1][0] / 60,
        "seen": dict(load.seen),
        "failures": load.failures,
        "growth an hour": slopes,
        "left when quiet": left,
        "median under load": {name: float(np.median([r[n] for r in settled])) for n, name in enumerate(WHAT, 1)},
        "memory when quiet, MB": after[1],
        "samples": watch.rows,
    }
    return figures, held


def plot(watch: Watch, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(len(WHAT), sharex=True, figsize=(9, 7), layout="constrained")
    minutes = [row[0] / 60 for row in watch.rows]
    for n, (name, axes) in enumerate(zip(WHAT, panels, strict=True), 1):
        axes.plot(minutes, [row[n] for row in watch.rows], linewidth=1, color="C0")
        axes.set_ylabel(name)
        axes.set_ylim(0, 1.15 * max(row[n] for row in watch.rows))
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("minutes under load")
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        models = [llama(Path(place) / f"model-{seed}", seed) for seed in range(2)]
        flags = ["--model", str(models[0]), "--device", "cpu", "--cache-bytes", "0", "--log-level", "error"]
        flags += ["--max-queue-tokens", "4096", "--state-dir", f"{place}/state"]
        server = ServerProcess(flags, Path(place) / "log", ("benchmarks.watched",))
        server.start()
        try:
            server.wait_ready()
            figures, held = judged(*(measured := asyncio.run(soak(server, models, asked.minutes))))
        finally:
            server.stop()
    if asked.plot:
        plot(measured[0], asked.plot)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")
    console = Console()
    console.print({name: value for name, value in figures.items() if name != "samples"})
    console.print("held" if held else "[red]did not hold")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
