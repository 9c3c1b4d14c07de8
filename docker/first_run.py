"""Start what the image is for, once, while it is built: python first_run.py server.

Two things come of it. An image whose server cannot score, or whose trainer cannot be loaded, is not built. And the modules that
were imported have their bytecode beside them, which a read-only root never writes; pip, told not to compile, has left out the
rest: 200 MB of modules that nobody imports.
"""

import importlib
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


def tiny_model(directory: Path) -> Path:
    """A random Llama without a tokenizer: token ids need none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def score_once(model: Path) -> None:
    """A server of its own answers one request, and ends as it ends on SIGTERM."""
    from grpo_client import ReferenceClient

    with socket.create_server(("127.0.0.1", 0)) as free:  # a build on the host's network has neighbours
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "grpo_server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        for line in server.stderr:
            sys.stderr.write(line)
            if "ready after" in line:
                break
        else:
            raise SystemExit(f"the server ended with status {server.wait()} before it was ready")
        try:
            with ReferenceClient(f"http://127.0.0.1:{port}", timeout=60, max_wait=60) as client:
                logprobs = client.score([[1, 2, 3]], [[[4, 5], [6, 7, 8]]]).logprobs
        finally:
            server.terminate()
        sys.stderr.write(server.stderr.read())
    if server.returncode:
        raise SystemExit(f"the server ended with status {server.returncode}")
    if not (logprobs < 0).any():
        raise SystemExit(f"the server answered {logprobs}")


def learn_once(model: Path) -> None:
    """All that a run imports, and one forward and backward of its policy."""
    for module in ("report.plots", "run.loop", "run.progress"):
        importlib.import_module(f"grpo_training.{module}")

    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(8)[None]
    AutoModelForCausalLM.from_pretrained(model)(input_ids=ids, labels=ids).loss.backward()


def main(extra: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        model = tiny_model(Path(directory))
        if extra == "training":
            learn_once(model)
        else:
            score_once(model)


if __name__ == "__main__":
    main(sys.argv[1])
