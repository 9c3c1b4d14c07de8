"""A real `grpo-server` killed with SIGKILL while a run trains against it: the run waits, goes on, and learns the same."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from grpo_client import ReferenceClient
from grpo_training.config import TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.run.loop import train
from grpo_training.run.step import StepReport


class Server:
    """A reference server as a process of its own, on a port that it keeps over restarts."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [str(Path(sys.executable).with_name("grpo-server")), "--model", str(model)]
        self._command += ["--port", str(self.port), "--threads", "1"]
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as sink:
            self.process = subprocess.Popen(self._command, stdout=sink, stderr=subprocess.STDOUT)

    def stop(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait()


class KillsTheServer:
    """An observer that kills the server when a step is done and starts another at once: it answers seconds later."""

    def __init__(self, server: Server, after_step: int) -> None:
        self.server = server
        self.after_step = after_step
        self.killed = False

    def started(self, config: TrainConfig, first_step: int, reference: str | None) -> None: ...

    def stepped(self, step: int, report: StepReport) -> None:
        if step == self.after_step:
            self.server.stop(signal.SIGKILL)
            self.server.start()
            self.killed = True

    def saved(self, path: Path) -> None: ...


def learned(config: TrainConfig) -> list[dict[str, float]]:
    return [
        {k: v for k, v in r.items() if not k.startswith("time/") and k != "reference/latency_s"}
        for r in read_records(config.trainer.output / "metrics.jsonl")
    ]


def test_the_run_outlives_its_server(make_config: Callable[..., TrainConfig], tiny_path: Path, tmp_path: Path) -> None:
    server = Server(tiny_path, tmp_path / "server.log")
    server.start()
    try:
        with ReferenceClient(server.url) as client:
            client.wait_ready(120)
        reference = {"max_wait": 120}
        calm = make_config(server.url, reference=reference, trainer={"output": str(tmp_path / "calm")})
        train(calm)
        stormy = make_config(server.url, reference=reference, trainer={"output": str(tmp_path / "stormy")})
        killer = KillsTheServer(server, after_step=1)
        train(stormy, observer=killer)
    finally:
        server.stop(signal.SIGTERM)
    assert killer.killed
    assert learned(stormy) == learned(calm)
