"""Error of each mode and path against float64, on real text, and the k3 noise that follows from it.

    python -m benchmarks.accuracy

The truth is the same weights in float64 through transformers' own forward, one sequence at a time. A reference that is off
by e in a log-prob puts about e^2 / 2 of noise into k3 = exp(d) - d - 1 where policy and reference agree.
"""

from __future__ import annotations

from collections.abc import Callable

from grpo_server.engine import environment

environment.prepare("exact")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from grpo_client.demo_model import locate  # noqa: E402
from grpo_client.protocol import ScoreRequest  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from . import contenders  # noqa: E402


def real_text(tokenizer, sequences: int) -> ScoreRequest:
    """Python's own licence-free prose at hand everywhere: the docstrings of the standard library."""
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
    return ScoreRequest.of([i[:40] for i in ids[:sequences]], [[i[40:]] for i in ids[:sequences]])


@torch.inference_mode()
def truth(request: ScoreRequest) -> np.ndarray:
    source = locate("demo")
    model = AutoModelForCausalLM.from_pretrained(source.path, gguf_file=source.gguf_file, dtype=torch.float64).eval()
    answers = []
    for group in request.groups:
        for completion in group.completions:
            ids = torch.tensor(np.concatenate([group.prompt, completion]))[None].long()
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1]
            targets = torch.tensor(completion).long()[:, None]
            answers.append(torch.log_softmax(logits, -1).gather(1, targets)[:, 0].numpy())
    return np.concatenate(answers)


def main() -> None:
    source = locate("demo")
    request = real_text(AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file), 16)
    exact = truth(request)
    table = Table("path", "mean |error|", "largest", "k3 noise (mean)", title=f"{len(exact)} tokens of real text, nats")
    rows: dict[str, Callable[[], contenders.Score]] = {
        "exact mode (fp32)": lambda: contenders.in_process("exact"),
        "fast mode, bf16 body": lambda: contenders.in_process("fast", "bfloat16"),
        "fast mode, fp16 body": lambda: contenders.in_process("fast", "float16"),
        "plain transformers fp32": lambda: contenders.plain(torch.float32),
        "plain transformers bf16": lambda: contenders.plain(torch.bfloat16),
    }
    for name, make in rows.items():
        score = make()
        error = score(request).astype(np.float64) - exact
        k3 = np.expm1(error) - error
        table.add_row(name, f"{np.abs(error).mean():.2e}", f"{np.abs(error).max():.2e}", f"{k3.mean():.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
