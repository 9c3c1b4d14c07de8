"""A tiny policy on disk with a tokenizer, and a real `grpo-server` beside it as the reference."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from grpo_client import ReferenceClient
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))  # the trainers that several files make stand in one of them

# TRL and datasets read these when they are imported: nothing here may touch a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {c: i for i, c in enumerate("\n +=0123456789abcdef", start=3)}
    tokens = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_path(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, wide enough weights that its distributions are far from uniform."""
    return _tiny(tokenizer, tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture(scope="session")
def other_path(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another of its kind."""
    return _tiny(tokenizer, tmp_path_factory.mktemp("other"), seed=1)


def _tiny(tokenizer: PreTrainedTokenizerFast, path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def reference_url(tiny_path: Path, other_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tiny model, and under the name `other` the other one."""
    models = [f"tiny={tiny_path}", f"other={other_path}"]
    with _served(models, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture
def moving_url(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of the test's own, whose reference it may move."""
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    monkeypatch.setenv("GRPO_ADMIN_KEY", "root")
    with _served([str(tiny_path)], tmp_path / "log") as url:
        yield url


@contextmanager
def _served(models: list[str], log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("grpo-server"))]
    command += [word for model in models for word in ("--model", model)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--threads", "1"], stdout=sink, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        with ReferenceClient(url) as client:
            client.wait_ready(270)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
