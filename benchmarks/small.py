"""Small random references and a server in a process of its own, for benches that end, kill and replace it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np
from grpo_client.protocol import Group, ScoreRequest

KEY = "benchmark"
VOCAB = 2000
# Seconds that a server may take until it is ready, on a machine that has other work.
PATIENCE = 1800.0


def llama(path: Path, seed: int, **sizes: int) -> Path:
    """A random Llama of 0.8 million weights, saved there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(
        LlamaConfig(**{**config, **sizes}, vocab_size=VOCAB, max_position_embeddings=512)  # pyright: ignore[reportArgumentType]
    ).save_pretrained(path)
    return path


def request(seed: int, groups: int = 2, completions: int = 4, prompt: int = 96, length: int = 64) -> ScoreRequest:
    rng = np.random.default_rng(seed)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, VOCAB, n, dtype=np.int32)

    return ScoreRequest(
        tuple(Group(ids(prompt), tuple(ids(length) for _ in range(completions))) for _ in range(groups))
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerProcess:
    """A grpo-server that keeps its port over restarts. flags: as on the command line. log: a file for what it says.
    module: what is run in its place, with its first arguments."""

    def __init__(
        self,
        flags: Sequence[str],
        log: Path,
        module: Sequence[str] = ("grpo_server",),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.flags, self.log, self.module = list(flags), log, module
        self.environment = {**os.environ, "GRPO_SERVER_ADMIN_KEY": KEY, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", *self.module, "--port", str(self.port), "--threads", "1", *self.flags]
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=sink, env=self.environment)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def wait_ready(self) -> None:
        """Raises RuntimeError with the end of the log when the process ends, or takes too long."""
        ends = time.monotonic() + PATIENCE
        while self.process is not None and self.process.poll() is None and time.monotonic() < ends:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the server did not become ready:\n{self.log.read_text(errors='replace')[-2000:]}")

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for the end. A process that was stopped is let go on first."""
        if self.process is not None and self.process.poll() is None:
            self.send(how)
            self.send(signal.SIGCONT)
            self.process.wait()
