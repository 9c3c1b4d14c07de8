"""The products of a layer: speed, and whether a row has the same bits whatever the number of rows.

Tried at heights over the whole range of a batch and at random offsets; the workspace variables under which they are tried are
those that the service sets before CUDA starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from .bench import Bench, figure, tera
from .stages import Line

LARGEST = 17408
VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE")


def run(bench: Bench) -> Iterator[Line]:
    s = bench.shape
    side = s.heads * s.head_dim
    keys = s.kv_heads * s.head_dim
    for name, out, into in (
        ("query, output", side, s.hidden),
        ("key, value", keys, s.hidden),
        ("gate, up", s.inner, s.hidden),
        ("down", s.hidden, s.inner),
    ):
        yield {"what": name, **_product(bench, out, into)}
    yield {"what": "variables", **{name: os.environ.get(name) for name in VARIABLES}}


def _product(bench: Bench, out: int, into: int) -> Line:
    largest = 256 if bench.tiny else LARGEST
    weight, x = bench.random(out, into, scale=0.02), bench.random(largest, into)
    whole = torch.nn.functional.linear(x, weight)
    heights = [64, 96, 128, 200, *range(256, largest, 64 if bench.tiny else 512), largest]
    unequal: list[int] = []
    for height in (h for h in heights if h <= largest):
        at = int(torch.randint(0, largest - height + 1, ()))
        if not torch.equal(torch.nn.functional.linear(x[at : at + height], weight), whole[at : at + height]):
            unequal.append(height)
    ms = bench.ms(lambda: torch.nn.functional.linear(x, weight))
    tried = len(heights)
    line: Line = {
        "N": out,
        "K": into,
        "rows": largest,
        "ms": figure(ms),
        "tflops": tera(2.0 * largest * out * into, ms),
    }
    return line | {"heights_tried": tried, "heights_with_other_bits": unequal[:12], "n_other": len(unequal)}
