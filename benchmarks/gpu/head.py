"""The fused head: time, error against float64, and what best tokens, asked ids and their tails add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from grpo_numerics import score_rows
from torch import Tensor

from .bench import Bench, figure, tera
from .stages import Line

ROWS_CHECKED = 64


def run(bench: Bench) -> Iterator[Line]:
    s = bench.shape
    hidden, weight = bench.random(s.head_rows, s.hidden), bench.random(s.vocab, s.hidden, scale=0.02)
    targets = torch.randint(0, s.vocab, (s.head_rows,), device=bench.device)
    flop = 2.0 * s.head_rows * s.hidden * s.vocab
    bench.free()
    scores = score_rows(hidden, weight, targets)
    exact = _exact(hidden, weight, targets)
    error = float(
        (scores.logprobs[:ROWS_CHECKED].double() - exact.gather(1, targets[:ROWS_CHECKED, None])[:, 0]).abs().max()
    )
    yield {"what": "log-probs", "error_nats": figure(error), "peak_gib": bench.peak_gib()}
    base = bench.ms(lambda: score_rows(hidden, weight, targets), times=5)
    yield {"what": "log-probs", "rows": s.head_rows, "ms": figure(base), "tflops": tera(flop, base)}
    some = slice(s.head_rows // 3, s.head_rows // 3 + 17)
    alone = score_rows(hidden[some], weight, targets[some]).logprobs
    yield {"what": "bits of 17 rows alone", "equal": torch.equal(alone, scores.logprobs[some])}
    ids = torch.randint(0, s.vocab, (s.head_rows, 4 if bench.tiny else 64), device=bench.device)
    asks: dict[str, dict[str, Any]] = {
        "entropy, rank": {"want": {"entropy", "rank"}},
        "64 asked ids, tail": {"token_ids": ids, "want": {"tail"}},
        "best 20": {"top_k": 20},
        "best 64, tail": {"top_k": 64, "want": {"tail"}},
        "best 256": {"top_k": 256},
    }
    for name, asked in asks.items():
        found = score_rows(hidden, weight, targets, **asked)
        line: Line = {"what": name}
        if found.top_ids is not None:
            wanted = exact.topk(found.top_ids.shape[1]).values
            mine = exact.gather(1, found.top_ids[:ROWS_CHECKED].long())
            line["error_nats"] = figure(float((mine - wanted).abs().max()))
        ms = bench.ms(lambda asked=asked: score_rows(hidden, weight, targets, **asked), times=3)
        yield line | {"ms": figure(ms), "times_log_probs": figure(ms / base)}


def _exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(rows, V) log-probs of the first rows in float64, in slices that fit beside the rest."""
    few = hidden[:ROWS_CHECKED].double()
    return torch.cat([few @ part.double().T for part in weight.split(16384)], 1).log_softmax(-1)
