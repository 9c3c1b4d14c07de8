"""How long a trainer waits for 1, 8, 64 and 512 replicas, simulated: the client's own balancer and the server's own admission,
with a clock that is moved by hand in place of a model.

    python -m benchmarks.bursts
    python -m benchmarks.bursts --speed 40000 --ranks 64 --tokens 4194304

At the start of every step all ranks of a trainer send at once what they sampled. A replica computes what it has accepted in
batches, at `--speed` tokens a second and `--overhead` seconds a batch; a refused request is sent elsewhere, or again when
Retry-After says so. Waiting is from the burst to the last answer; ideal is the work over the speed of all replicas together.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, get_args

from grpo_client.errors import Unavailable
from grpo_client.http.balancer import Balancer
from grpo_client.ring import Ring, prompt_key
from grpo_server.errors import ServiceError
from grpo_server.scheduler.admission import Admission
from rich.console import Console
from rich.table import Table

Placing = Literal["prompt", "idle", "listed"]
JITTER = 0.25  # seconds that a client adds to every wait, at most


class Simulation:
    """Events in the order of their time. now: seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, act))

    def run(self) -> None:
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()


@dataclass
class Replica:
    """Takes whole requests, in the order of their arrival, in batches of at most `batch` tokens."""

    world: Simulation
    speed: float
    overhead: float
    batch: int
    queue: int
    waiting: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    busy: bool = False

    def __post_init__(self) -> None:
        self.admission = Admission(self.queue, 2**62, lambda: self.world.now)
        self.admission.throughput.add(round(self.speed * 10), 10.0)

    def accept(self, tokens: int, name: bytes, answered: Callable[[], None]) -> None:
        """Raises ServiceError when the queue is full."""
        self.admission.admit(tokens, 1, lambda: name)
        self.waiting.append((tokens, answered))
        if not self.busy:
            self._next()

    def _next(self) -> None:
        taken: list[tuple[int, Callable[[], None]]] = []
        room = self.batch
        while self.waiting and (self.waiting[0][0] <= room or not taken):
            taken.append(self.waiting.popleft())
            room -= taken[-1][0]
        self.busy = bool(taken)
        if not taken:
            return
        tokens = sum(t for t, _ in taken)
        self.admission.computing(tokens)

        def done() -> None:
            self.admission.computing(0)
            self.admission.computed(tokens)
            for _, answered in taken:
                self.admission.leave(1)
                answered()
            self._next()

        self.world.after(self.overhead + tokens / self.speed, done)


def url_of(replica: int) -> str:
    return f"http://{replica}"


@dataclass
class Rank:
    """One process of the trainer: a client with so many requests in flight over all replicas."""

    world: Simulation
    replicas: list[Replica]
    order: list[int]
    rng: random.Random
    todo: deque[tuple[int, bytes]]
    ring: Ring
    keyed: bool
    in_flight: int = 4
    refused: int = 0
    finished: float = 0.0

    def __post_init__(self) -> None:
        self.balancer = Balancer([url_of(i) for i in self.order], clock=lambda: self.world.now, ring=self.ring)

    def start(self) -> None:
        for _ in range(min(self.in_flight, len(self.todo))):
            self._take()

    def _take(self) -> None:
        if self.todo:
            self._send(*self.todo.popleft())

    def _send(self, tokens: int, name: bytes) -> None:
        lease: AbstractContextManager[str] = self.balancer.lease(prompt_key(name.decode()) if self.keyed else None)
        replica = self.replicas[int(lease.__enter__().removeprefix("http://"))]

        def answered() -> None:
            lease.__exit__(None, None, None)
            self.finished = self.world.now
            self._take()

        try:
            replica.accept(tokens, name, answered)
        except ServiceError as refusal:
            self.refused += 1
            error = Unavailable("full", status=429, retry_after=refusal.retry_after)
            lease.__exit__(Unavailable, error, None)  # which sets the replica aside
            wait = 0.0 if self.balancer.ready() else (refusal.retry_after or 0.0) + self.rng.uniform(0, JITTER)
            self.world.after(wait, lambda: self._send(tokens, name))


@dataclass(frozen=True)
class Outcome:
    """wait: seconds from the burst to the last answer. ideal: of the work over all replicas' speed."""

    replicas: int
    wait: float
    ideal: float
    refused: int
    requests: int


def burst(
    replicas: int, *, ranks: int, tokens: int, request: int, speed: float, overhead: float, batch: int, queue: int,
    placing: Placing = "prompt", seed: int = 0,
) -> Outcome:  # fmt: skip
    """tokens: of the whole burst. request: tokens of one. placing: each request asks about a prompt of its own
    and goes where that belongs; or none has a prompt, and each rank has the replicas in an order of its own; or all in one."""
    rng = random.Random(seed)
    world = Simulation()
    ring = Ring(url_of(i) for i in range(replicas))
    served = [Replica(world, speed, overhead, batch, queue) for _ in range(replicas)]
    each = max(1, tokens // request // ranks)
    clients = [
        Rank(
            world,
            served,
            [*range(replicas)] if placing == "listed" else rng.sample(range(replicas), replicas),
            rng,
            deque((request, f"{r}/{i}".encode()) for i in range(each)),
            ring,
            placing == "prompt",
        )
        for r in range(ranks)
    ]
    for client in clients:
        client.start()
    world.run()
    ideal = each * ranks * request / (replicas * speed)
    return Outcome(replicas, max(c.finished for c in clients), ideal, sum(c.refused for c in clients), each * ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=float, default=2000.0, help="tokens a second of one replica")
    parser.add_argument("--overhead", type=float, default=0.014, help="seconds that each batch takes besides")
    parser.add_argument("--ranks", type=int, default=64, help="processes of the trainer")
    parser.add_argument("--tokens", type=int, default=2**22, help="tokens of a burst")
    parser.add_argument("--request", type=int, default=2048, help="tokens of a request")
    parser.add_argument("--batch", type=int, default=6144, help="--max-batch-tokens")
    parser.add_argument("--queue", type=int, default=524_288, help="--max-queue-tokens")
    asked = vars(parser.parse_args())
    columns = (
        "replicas",
        "by prompt, s",
        "of the ideal",
        "least busy, s",
        "of the ideal",
        "in list order, s",
        "refusals",
    )
    table = Table(*columns, title=f"a burst of {asked['tokens']} tokens")
    for replicas in (1, 8, 64, 512):
        prompt, idle, listed = (burst(replicas, **asked, placing=placing) for placing in get_args(Placing))
        waits = [f"{found.wait:.1f}" for found in (prompt, idle, listed)]
        shares = [f"{found.ideal / found.wait:.0%}" for found in (prompt, idle)]
        refused = f"{prompt.refused / prompt.requests:.2f}"
        table.add_row(str(replicas), waits[0], shares[0], waits[1], shares[1], waits[2], refused)
    Console().print(table)


if __name__ == "__main__":
    main()
