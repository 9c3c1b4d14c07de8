"""A running server, and plain transformers in fp32 as the oracle, for the real clients.

Not part of `make test`: `make test-clients` gives these tests an environment of their own. The server runs from the
project's .venv, or is one that GRPO_CLIENTS_URL names (started with --simple-grpo).
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
import transformers
from grpo_client.models.demo import locate
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / ".venv/bin/grpo-server"
MODEL = "demo"

# Two fp32 forwards of a 30-layer model differ by some 1e-5 nats; the issue asks for 1e-4.
TOLERANCE = 1e-4

Oracle = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a ready server that hosts the demo model."""
    if given := os.environ.get("GRPO_CLIENTS_URL"):
        yield given.rstrip("/")
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [COMMAND, "--model", MODEL, "--port", str(port), "--simple-grpo"], stdout=out, stderr=out
        )
    try:
        base = f"http://127.0.0.1:{port}"
        with requests.Session() as session:
            retry = Retry(total=100, connect=100, status=100, backoff_factor=0.5, backoff_max=2, status_forcelist=[503])
            session.mount("http://", HTTPAdapter(max_retries=retry))
            assert session.get(f"{base}/readyz", timeout=60).status_code == 200, log.read_text()
        yield base
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="session")
def model_dir(url: str) -> str:
    """The directory of the demo model, which the server has unpacked by now."""
    return locate(MODEL).path


@pytest.fixture(scope="session")
def tokenizer(model_dir: str) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="session")
def logprobs(model_dir: str) -> Oracle:
    """logprobs(ids, temperature) -> (n - 1, vocabulary) fp64: one plain forward in fp32, normalised in fp64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()

    def forward(ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        with torch.inference_mode():
            logits = model(torch.tensor([list(ids)])).logits[0, :-1].double()
        return torch.log_softmax(logits / temperature, dim=-1).numpy()

    return forward


@pytest.fixture(scope="session")
def sequences(tokenizer: transformers.PreTrainedTokenizerBase) -> list[list[int]]:
    """A few prompts with completions; two share a prompt, one ends in the end-of-text token."""
    prompt = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
    texts = [
        prompt + "17 + 25 = 42.<|im_end|>",
        prompt + "I believe that it is 41, but let me check again.",
        "The capital of France is Paris, and the capital of Italy is",
        "def add(a, b):\n    return a + b\n",
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def actual(table: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """(n - 1,) of the tokens that are there."""
    return table[np.arange(len(ids) - 1), list(ids)[1:]]


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Leave a figure in the test report (`pytest --junit-xml`) and on the terminal (`pytest -s`)."""

    def write(name: str, value: float) -> None:
        record_property(name, value)
        print(f"\n    {name}: {value:.2e}")

    return write
