"""Replicas on Ray Serve: how much two are worth, and what is lost when one is killed or all change their reference under load.

    python -m benchmarks.replicas                      needs the extra `ray`: .venv-ray/bin/python, see `make test-ray`
    python -m benchmarks.replicas --rounds 9 --seconds 30

One application has one replica and the other has two, of one thread each; rounds of load go to them in turn, so that both see
what else the machine does. Each answer is compared with the first one to the same question. Ends with status 1 where an answer
is lost, two answers for one fingerprint differ, or two replicas are less than 1.7 times one.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from grpo_client import ReferenceClient
from grpo_client.protocol import ReferenceInfo, ScoreResult

PORT = 8720
CLIENTS = 6
QUESTIONS = 32
# Until every client has asked and the replicas' queues are what they will be.
RAMP_SECONDS = 2.0
WANTED = 1.7


def make_model(directory: Path, seed: int) -> str:
    """A random Llama that takes a fifth of a second for a question on one core: what Ray's proxy and the clients take for an
    answer (12 ms of a processor) is small beside that, as it is with real models."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def questions() -> list[tuple[list[list[int]], list[list[list[int]]]]]:
    """Each one prompt of 64 tokens with 8 completions of 96."""
    rng = np.random.default_rng(0)
    return [([rng.integers(0, 1024, 64).tolist()], [rng.integers(0, 1024, (8, 96)).tolist()]) for _ in range(QUESTIONS)]


@dataclass
class Load:
    """So many clients that ask one question after the other, until told to stop."""

    url: str
    pin: str | None = None
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    first: dict[tuple[str, int], bytes] = field(default_factory=dict)
    versions: dict[int, set[str]] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._asked = questions()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _ask(self, n: int) -> None:
        try:
            with ReferenceClient(self.url, fingerprint=self.pin, max_wait=300) as client:
                while not self._stop.is_set():
                    began = time.monotonic()
                    question = (n := n + CLIENTS) % QUESTIONS
                    self._note(question, client.score(*self._asked[question]), time.monotonic() - began)
        except Exception as error:  # noqa: BLE001  whatever it is, it is an answer that did not come
            self.wrong.append(f"{type(error).__name__}: {error}")

    def _note(self, question: int, result: ScoreResult, seconds: float) -> None:
        key = (result.reference.fingerprint, question)
        with self._lock:
            self.answers += 1
            self.waits.append(seconds)
            self.versions.setdefault(result.reference.version, set()).add(result.reference.fingerprint)
            if self.first.setdefault(key, result.logprobs.tobytes()) != result.logprobs.tobytes():
                self.wrong.append(f"two answers of {key[0][:16]} to question {question}")


def throughput(one: str, two: str, rounds: int, seconds: float) -> list[float]:
    """Answers of two replicas over those of one, by rounds."""
    ratios: list[float] = []
    for n in range(rounds + 1):
        counts: list[int] = []
        for url in (one, two):
            load = Load(url)
            with load.running():
                time.sleep(RAMP_SECONDS)
                before = load.answers
                time.sleep(seconds)
                counts.append(load.answers - before)
            _sound(load)
        if n:  # the first one warms up
            ratios.append(counts[1] / counts[0])
            print(f"  {counts[0] / seconds:.1f} and {counts[1] / seconds:.1f} answers a second: {ratios[-1]:.2f}")
    return ratios


def kill_one(url: str, victim: Callable[[], int], seconds: float) -> Load:
    """Load during which a replica is killed."""
    load = Load(url)
    with load.running():
        time.sleep(seconds)
        before = load.answers
        os.kill(victim(), signal.SIGKILL)
        deadline = time.monotonic() + 120
        while load.answers < before + 10 * CLIENTS and time.monotonic() < deadline:
            time.sleep(0.1)
    _sound(load)
    return load


def swap_under(url: str, model: str, key: str) -> tuple[Load, int]:
    """Load of clients that are pinned to nothing, while others pin what comes as soon as anybody has seen it."""
    load, late = Load(url), []
    with load.running():
        with ReferenceClient(url, api_key=key, timeout=600) as admin:
            info: ReferenceInfo = admin.move(model)
        for _ in range(
            3
        ):  # from the first moment behind the swap on every replica answers a client that is pinned to it
            pinned = Load(url, pin=info.fingerprint)
            pinned.first = load.first
            with pinned.running():
                time.sleep(1.0)
            late.append(pinned)
    _sound(load)
    for pinned in late:
        _sound(pinned)
    if any(len(prints) > 1 for prints in load.versions.values()):
        raise SystemExit(f"one version, two references: {load.versions}")
    return load, sum(pinned.answers for pinned in late)


def _sound(load: Load) -> None:
    if load.wrong:
        raise SystemExit(f"{len(load.wrong)} answers were lost or wrong, the first: {load.wrong[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of loads that are compared")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    asked = parser.parse_args()

    import ray
    from grpo_server.config import ServerConfig
    from grpo_server.ray.application import application
    from grpo_server.ray.proxy import CALLBACK, VARIABLE
    from ray import serve

    os.environ |= {VARIABLE: CALLBACK, "GRPO_SERVER_ADMIN_KEY": "bench", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as directory:
        models = [make_model(Path(directory, str(seed)), seed) for seed in (0, 1)]
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        for name, replicas in (("one", 1), ("two", 2)):
            config = ServerConfig(model=models[0], ray=True, replicas=replicas, threads=1, cache_bytes=0, ui=False)
            serve.run(application(config), name=name, route_prefix=f"/{name}")
        one, two = (f"http://127.0.0.1:{PORT}/{name}" for name in ("one", "two"))

        def victim() -> int:
            pids = [
                int(path.name)
                for path in Path("/proc").glob("[0-9]*")
                if "ray::ServeReplica:two:server" in _command(path)
            ]
            print(f"  killing {pids[0]}, one of {len(pids)}")
            return pids[0]

        try:
            print("two replicas and one, in turn:")
            ratios = throughput(one, two, asked.rounds, asked.seconds)
            print(f"  median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
            killed = kill_one(two, victim, asked.seconds)
            print(
                f"one of two killed: {killed.answers} answers, none lost or wrong; longest wait {max(killed.waits):.1f} s"
            )
            swapped, pinned = swap_under(two, models[1], "bench")
            versions = " and ".join(str(version) for version in sorted(swapped.versions))
            print(
                f"both changed: {swapped.answers} answers of versions {versions}, none lost or wrong; {pinned} by pin"
            )
        finally:
            serve.shutdown()
            ray.shutdown()
    if statistics.median(ratios) < WANTED:
        sys.exit(f"two replicas are {statistics.median(ratios):.2f} times one, not {WANTED}")


def _command(path: Path) -> str:
    try:
        return (path / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
