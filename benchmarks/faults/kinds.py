"""The faults. Each begins at a random moment of a step, and ends when the next step is done."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..small import ServerProcess
from .proxy import Calm, Weather
from .weather import Delays, Drops, Flips, Truncates
from .world import World

# What bad weather has harmed before it ends, and how long it lasts at most.
HARMS = 20
MOST_SECONDS = 60.0


class Fault(ABC):
    """name: for the table. loud: whether it may end a run or a request with an error, which a supervisor or a caller sees."""

    name: ClassVar[str]
    loud: ClassVar[bool] = False

    @abstractmethod
    def begin(self, world: World) -> str:
        """Do it; a word of what was seen."""

    def end(self, world: World) -> None:  # noqa: B027 - most have nothing to undo
        """Undo it."""


class KillReplica(Fault):
    name = "SIGKILL to one replica"

    def begin(self, world: World) -> str:
        self._server = world.rng.choice(world.servers)
        self._server.stop(signal.SIGKILL)
        self._server.start()
        return f"replica on port {self._server.port}"

    def end(self, world: World) -> None:
        self._server.wait_ready()


class KillAll(Fault):
    name = "SIGKILL to every replica at once"

    def begin(self, world: World) -> str:
        for server in world.servers:
            server.stop(signal.SIGKILL)
        for server in world.servers:
            server.start()
        return f"{len(world.servers)} replicas"

    def end(self, world: World) -> None:
        for server in world.servers:
            server.wait_ready()


class KillTrainer(Fault):
    name = "SIGKILL to the trainer"
    loud = False

    def begin(self, world: World) -> str:
        assert world.trainer is not None
        world.trainer.send(signal.SIGKILL)
        return f"after step {world.trainer.steps}"


@dataclass
class BadWeather(Fault):
    """Of all connections to all replicas. least: it lasts until so much has come to harm, be the step done long before."""

    weather: Weather
    name: str  # pyright: ignore[reportIncompatibleVariableOverride]
    loud: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    least: int = 0

    def begin(self, world: World) -> str:
        self._before = world.harmed
        for proxy in world.proxies:
            proxy.weather = self.weather
        return repr(self.weather)

    def end(self, world: World) -> None:
        ends = time.monotonic() + MOST_SECONDS
        while world.harmed < self._before + self.least and time.monotonic() < ends:
            time.sleep(0.05)
        for proxy in world.proxies:
            proxy.weather = Calm()


class ResetAll(Fault):
    name = "every connection reset"

    def begin(self, world: World) -> str:
        for proxy in world.proxies:
            proxy.reset_all()
        return "once"


@dataclass
class Stop(Fault):
    """SIGSTOP, and SIGCONT a little later."""

    name = "SIGSTOP and SIGCONT to one replica"
    seconds: float = 1.5

    def begin(self, world: World) -> str:
        self._server = world.rng.choice(world.servers)
        self._server.send(signal.SIGSTOP)
        self._timer = threading.Timer(self.seconds, self._server.send, (signal.SIGCONT,))
        self._timer.start()
        return f"{self.seconds:g} s"

    def end(self, world: World) -> None:
        self._timer.join()


class SwapSame(Fault):
    name = "swap to the same weights"

    def begin(self, world: World) -> str:
        answers = [world.host(server, world.reference) for server in world.servers]
        assert all(answer.status_code == 200 for answer in answers), [answer.text for answer in answers]
        return f"versions {[answer.json()['version'] for answer in answers]}"


class SwapOther(Fault):
    """The client is pinned: it must refuse, and not be answered by the wrong one."""

    name = "swap to other weights, and back"
    loud = True

    def begin(self, world: World) -> str:
        self._server = world.rng.choice(world.servers)
        answer = world.host(self._server, world.other)
        return f"{answer.status_code} on port {self._server.port}"

    def end(self, world: World) -> None:
        answer = world.host(self._server, world.reference)
        assert answer.status_code == 200, answer.text


@dataclass
class FullDisk(Fault):
    """No byte is left where states and checkpoints are; a swap is asked for meanwhile."""

    name = "disk full, under a swap and a checkpoint"
    loud = True
    _ballast: Path | None = field(default=None, init=False)

    def begin(self, world: World) -> str:
        self._ballast = world.disk / "ballast"
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))
        answers = [world.host(server, world.reference) for server in world.servers]
        said = [(answer.status_code, answer.json().get("error", {}).get("code")) for answer in answers]
        assert all(server.process is not None and server.process.poll() is None for server in world.servers)
        return f"the swaps: {said}"

    def end(self, world: World) -> None:
        if self._ballast is not None:
            self._ballast.unlink()


class NoMemory(Fault):
    """An address space (RLIMIT_AS) of what is there already: nothing more can be had from the system."""

    name = "no memory to be had by one replica"
    loud = True

    def begin(self, world: World) -> str:
        self._server: ServerProcess = world.rng.choice(world.servers)
        pages = int(Path(f"/proc/{self._server.pid}/statm").read_text().split()[0])
        size = pages * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(self._server.pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        self._timer = threading.Timer(3.0, self._give_back)
        self._timer.start()
        return f"{size >> 20} MiB of address space"

    def _give_back(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self._server.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def end(self, world: World) -> None:
        self._timer.join()
        if self._server.process is not None and self._server.process.poll() is not None:
            self._server.start()  # as an orchestrator would
            self._server.wait_ready()


def network() -> list[Fault]:
    """What happens to connections."""
    return [
        ResetAll(),
        BadWeather(Drops(), "connections dropped", least=HARMS),
        BadWeather(Delays(), "bytes delayed"),
        BadWeather(Truncates(), "answers and requests truncated", least=HARMS),
        BadWeather(Flips(), "bits flipped in bodies", least=HARMS),
        BadWeather(Flips(0.1, heads=True), "bits flipped anywhere, heads too", loud=True, least=HARMS),
    ]


def processes() -> list[Fault]:
    """What happens to processes, and what they need."""
    return [KillReplica(), KillAll(), KillTrainer(), Stop(), SwapSame(), SwapOther(), FullDisk(), NoMemory()]
