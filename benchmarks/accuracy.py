"""Error of each mode and path against float64, on real text, and the k3 noise that follows from it.

    python -m benchmarks.accuracy

The truth is the same weights in float64 through transformers' own forward, one sequence at a time. A reference that is off
by e in a log-prob puts about e^2 / 2 of noise into k3 = exp(d) - d - 1 where policy and reference agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from grpo_server.engine import environment

environment.set_environment("exact")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from grpo_client.models.demo import locate  # noqa: E402
from grpo_client.protocol import ScoreRequest  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from . import contenders  # noqa: E402


def real_text(tokenizer, sequences: int, temperature: float) -> ScoreRequest:
    """Prose that is at hand everywhere, the docstrings of the standard library; and four sequences of random tokens, which
    are the hardest: most of them are very unlikely."""
    import argparse
    import asyncio
    import collections
    import decimal
    import email
    import json
    import logging
    import statistics
    import unittest

    modules = (argparse, asyncio, collections, decimal, email, json, logging, statistics, unittest)
    members = [member for m in modules for member in (m, *(v for v in vars(m).values() if callable(v)))]
    texts = [m.__doc__ for m in members if isinstance(m.__doc__, str) and len(m.__doc__) > 300]
    ids = [i for i in (tokenizer(t).input_ids[:160] for t in texts) if len(i) > 60]
    rng = np.random.default_rng(0)
    ids = [*ids[:sequences], *(rng.integers(3, tokenizer.vocab_size, n).tolist() for n in (50, 70, 100, 100))]
    return ScoreRequest.of([i[:40] for i in ids], [[i[40:]] for i in ids], temperature=temperature)


@torch.inference_mode()
def truth(request: ScoreRequest) -> np.ndarray:
    source = locate("demo")
    model = AutoModelForCausalLM.from_pretrained(source.path, gguf_file=source.gguf_file, dtype=torch.float64).eval()
    answers = []
    for group in request.groups:
        for completion in group.completions:
            ids = torch.tensor(np.concatenate([group.prompt, completion]))[None].long()
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1] / group.temperature
            targets = torch.tensor(completion).long()[:, None]
            answers.append(torch.log_softmax(logits, -1).gather(1, targets)[:, 0].numpy())
    return np.concatenate(answers)


CONTENDERS: dict[str, Callable[[], contenders.Score]] = {
    "exact mode (fp32)": lambda: contenders.in_process("exact"),
    "transformers fp32, padded": lambda: contenders.plain(torch.float32),
    "fast mode, bf16 body": lambda: contenders.in_process("fast", "bfloat16"),
    "transformers bf16, padded": lambda: contenders.plain(torch.bfloat16),
    "fast mode, fp16 body": lambda: contenders.in_process("fast", "float16"),
    "transformers fp16, padded": lambda: contenders.plain(torch.float16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16, help="of real text, at most 160 tokens each")
    args = parser.parse_args()
    source = locate("demo")
    tokenizer = AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file)
    requests = {t: real_text(tokenizer, args.sequences, t) for t in (1.0, 0.5)}
    exact = {t: truth(request) for t, request in track(list(requests.items()), "float64")}
    columns = ("temperature", "mean |error|", "rms", "largest", "k3 noise (mean)")
    table = Table("path", *columns, title=f"{len(exact[1.0])} tokens, nats")
    for name, make in track(list(CONTENDERS.items()), "scoring"):
        score = make()
        for temperature, request in requests.items():
            error = score(request).astype(np.float64) - exact[temperature]
            figures = (np.abs(error).mean(), np.sqrt((error**2).mean()), np.abs(error).max())
            k3 = np.expm1(error) - error
            table.add_row(name, f"{temperature}", *(f"{f:.2e}" for f in figures), f"{k3.mean():.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
