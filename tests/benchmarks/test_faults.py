"""The bench of faults in small: a run behind the proxy must learn the same in bad weather as in good."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpo_training.config import TrainConfig
from grpo_training.run.loop import train
from grpo_training.run.step import StepReport

from benchmarks.faults.__main__ import learned
from benchmarks.faults.kinds import BadWeather, Fault, ResetAll, Stop, SwapSame
from benchmarks.faults.policy import run_values, tiny_policy
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.weather import Delays, Drops, Flips, Truncates
from benchmarks.faults.world import World
from benchmarks.small import ServerProcess

FAULTS: list[Fault] = [
    BadWeather(Drops(0.3), "dropped"),
    BadWeather(Flips(0.4), "flipped"),
    SwapSame(),
    BadWeather(Truncates(0.3), "truncated"),
    ResetAll(),
    BadWeather(Delays(0.05), "delayed"),
    Stop(0.3),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    model = tiny_policy(tmp_path / "model", 0)
    server = ServerProcess(["--model", str(model), "--device", "cpu", "--cache-bytes", "0"], tmp_path / "log")
    server.start()
    proxy = Proxy(server.port)
    try:
        server.wait_ready()
        yield World([server], [proxy], model, model, tmp_path, False, random.Random(0))
    finally:
        proxy.close()
        server.stop()


class Storm:
    """An observer that begins a fault when a step is done, and ends it a step later."""

    def __init__(self, world: World) -> None:
        self.world, self.faults, self.now = world, iter(FAULTS), None

    def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None: ...

    def stepped(self, step: int, report: StepReport) -> None:
        if self.now is not None:
            self.now.end(self.world)
        self.now = next(self.faults, None)
        if self.now is not None:
            self.now.begin(self.world)

    def evaluated(self, done: int, figures: dict[str, float]) -> None: ...

    def saved(self, path: Path) -> None: ...


def test_a_run_under_faults_learns_the_same(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = len(FAULTS) + 2

    def config(name: str, url: str) -> TrainConfig:
        values = run_values(world.reference, [url], steps, tmp_path / name)
        return TrainConfig.model_validate(
            values
            | {
                "rollout": {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 6},
                "trainer": {**values["trainer"], "checkpoint_every": 0},
            }
        )

    calm, stormy = config("calm", world.servers[0].url), config("stormy", world.proxies[0].url)
    train(calm)
    storm = Storm(world)
    train(stormy, observer=storm)
    assert next(storm.faults, None) is None, "every fault has been"
    assert world.proxies[0].harmed > 0
    assert len(learned(calm.trainer.output)) == steps
    assert learned(stormy.trainer.output) == learned(calm.trainer.output)


@pytest.fixture
def upper() -> Iterator[Proxy]:
    """A proxy in front of a server that answers one message a connection with its bytes, in a body behind a head."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    if data := connection.recv(2**16):
                        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + data.partition(b"\r\n\r\n")[2])

        thread = threading.Thread(target=serve)
        thread.start()
        proxy = Proxy(listening.getsockname()[1])
        yield proxy
        proxy.close()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def answer(proxy: Proxy, body: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\n\r\n" + body)
        got = b""
        try:
            while piece := connection.recv(2**16):
                got += piece
        except ConnectionError:
            pass
        return got


def test_the_proxy_does_what_the_weather_says(upper: Proxy) -> None:
    body = bytes(range(256)) * 4
    whole = b"HTTP/1.1 200 OK\r\n\r\n" + body
    assert answer(upper, body) == whole
    assert upper.harmed == 0
    upper.weather = Flips(1.0)
    flipped = answer(upper, body)
    assert flipped[:19] == whole[:19], "a head is left alone"
    assert len(flipped) == len(whole)
    assert sum((a ^ b).bit_count() for a, b in zip(flipped, whole, strict=True)) in (0, 2)  # once each way
    upper.weather = Drops(1.0)
    assert answer(upper, body) == b""
    upper.weather = Truncates(1.0)
    assert len(answer(upper, body)) < len(whole)
    assert upper.harmed >= 4
