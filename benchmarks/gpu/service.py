"""The service over HTTP with two clients that ask at the same time: tokens a second from end to end.

The model is half a billion parameters at full size, small enough to be written to disk and read again within the stage.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from grpo_client import ReferenceClient
from grpo_client.protocol import ScoreRequest

from ..contenders import server
from .bench import Bench, figure
from .models import random_model
from .stages import Line

CLIENTS = 2
REQUESTS = 4


def run(bench: Bench) -> Iterator[Line]:
    shape = bench.shape
    if not bench.tiny:
        shape = replace(shape, hidden=896, inner=4864, layers=24, heads=14, kv_heads=2, head_dim=64)
        bench = replace(bench, shape=shape)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(bench)
        model.save_pretrained(Path(folder))
        parameters = sum(p.numel() for p in model.parameters())
        del model
        bench.free()
        start = time.perf_counter()
        with server("--model", folder, "--device", str(bench.device)) as (url, _):
            with ReferenceClient(url) as client:
                reference = client.info()
            yield {
                "what": "start",
                "seconds": figure(time.perf_counter() - start),
                "parameters": parameters,
                "mode": reference.mode,
                "tier": reference.tier,
                "bitwise": reference.bitwise,
            }
            yield {"what": "two clients", **two_clients(bench, url)}


def two_clients(bench: Bench, url: str) -> Line:
    def ask(first: int) -> int:
        with ReferenceClient(url, timeout=300) as client:
            for i in range(REQUESTS):
                prompt, completions = bench.group(first + 1000 * i)
                client.score_request(ScoreRequest.of([prompt], [list(completions)]))
        return REQUESTS * bench.shape.client_tokens

    ask(7)
    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        tokens = sum(pool.map(ask, (11, 13)))
    seconds = time.perf_counter() - start
    return {"requests": CLIENTS * REQUESTS, "seconds": figure(seconds), "client_tokens_per_s": figure(tokens / seconds)}
