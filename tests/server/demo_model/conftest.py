"""Fixtures for what is tried on the real model: a `grpo-server` process that hosts it, and the same model in this process."""

import signal
import socket
import subprocess
import sys

import pytest
import torch
from grpo_client import ReferenceClient
from grpo_client.models.demo import locate
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server process on a free port: its base URL and process id."""
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "grpo_server", "--model", "demo", "--port", str(port)], stderr=sink, stdout=sink
        )
    base = f"http://127.0.0.1:{port}"
    try:
        with ReferenceClient(base) as client:
            client.wait_ready(timeout=240)
        yield base, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]


@pytest.fixture(scope="session")
def oracle(server):  # after the server, which keeps the unpacked copy that this loads
    source = locate("demo")
    model = AutoModelForCausalLM.from_pretrained(source.path, gguf_file=source.gguf_file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file)
    return model.eval(), tokenizer
