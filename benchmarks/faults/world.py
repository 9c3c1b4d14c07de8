"""What faults happen to: replicas with a proxy in front of each, a trainer that is started again when it ends, a small disk."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import yaml
from grpo_client import GrpoClientError, ReferenceClient
from grpo_client.protocol import ScoreResult

from ..small import KEY, ServerProcess
from .policy import QUESTIONS
from .proxy import Proxy

MOST_STARTS = 60
# Seconds, on a machine that has other work.
PATIENCE = 1800.0


class Trainer:
    """`grpo-train`, started again with --resume until it is done. It waits before a step that it may not begin yet."""

    def __init__(self, config: Path, output: Path, log: Path, skewed: bool) -> None:
        run = [sys.executable, "-m", *(["benchmarks.faults.skewed"] if skewed else []), "grpo_training"]
        self._command = [*run, "--config", str(config), "--output", str(output), "--resume"]
        self.output, self._log = output, log
        self.allowed = sys.maxsize
        self.starts, self.status = 0, -1
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._supervise, self._pace)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _supervise(self) -> None:
        while self.starts < MOST_STARTS and self.status != 0:
            self.starts += 1
            with self._log.open("ab") as sink:
                self._process = subprocess.Popen(self._command, stdout=sink, stderr=sink)
            self.status = self._process.wait()
            self._over.wait(0.2)
        self._over.set()

    def _pace(self) -> None:
        """A process that is stopped at the end of a step: the storm and not the machine says how fast a run is."""
        held = False
        while not self._over.wait(0.02):
            wanted = self.steps >= self.allowed
            if wanted is not held or wanted:
                self.send(signal.SIGSTOP if wanted else signal.SIGCONT)
            held = wanted

    @property
    def steps(self) -> int:
        """Steps that are done."""
        file = self.output / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def wait(self, steps: int | None = None) -> bool:
        """Until so many are done, or the run is. False after PATIENCE seconds."""
        ends = time.monotonic() + PATIENCE
        while not self.over and (steps is None or self.steps < steps):
            if time.monotonic() > ends:
                return False
            time.sleep(0.05)
        return True

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    @property
    def pid(self) -> int | None:
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def close(self) -> None:
        self.starts, self.allowed = MOST_STARTS, sys.maxsize
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)


@dataclass
class Witness:
    """Asks the same questions over and over through the proxies, pinned, and knows the answers."""

    urls: list[str]
    fingerprint: str
    truth: list[np.ndarray]
    answered: int = 0
    wrong: int = 0
    loud: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="witness", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        options = {"fingerprint": self.fingerprint, "timeout": 10.0, "max_wait": PATIENCE}
        with ReferenceClient(self.urls, **options) as client:  # pyright: ignore[reportArgumentType]
            while not self._over.wait(0.02):
                for question, right in zip(QUESTIONS, self.truth, strict=True):
                    try:
                        result: ScoreResult = client.score_request(question)
                    except GrpoClientError as error:
                        self.loud.append(f"{type(error).__name__}: {error}")
                        continue
                    self.answered += 1
                    self.wrong += not np.array_equal(result.logprobs, right)

    def close(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE)


@dataclass
class World:
    """reference, other: models. disk: where states and the run are; small where `small_disk` could make it so."""

    servers: list[ServerProcess]
    proxies: list[Proxy]
    reference: Path
    other: Path
    disk: Path
    small: bool
    rng: random.Random
    trainer: Trainer | None = None

    @property
    def harmed(self) -> int:
        """How often bytes did not arrive as they were sent."""
        return sum(proxy.harmed for proxy in self.proxies)

    def host(self, server: ServerProcess, model: Path) -> httpx.Response:
        """Swap, behind the proxies' backs."""
        body = {"model": str(model)}
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{server.url}/admin/reference", json=body, headers=headers, timeout=PATIENCE)

    def step_later(self, most: float = 0.5) -> None:
        """A random moment of the step that goes on now."""
        time.sleep(self.rng.uniform(0, most))


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[bool]:
    """A file system of its own there, where this process may mount one. Yields whether it could."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def write_config(path: Path, values: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return path
