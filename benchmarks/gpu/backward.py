"""Gradients: of the head, and of attention, against float64 on a small case and timed at full size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from grpo_numerics import fused_logprobs, token_logprobs
from grpo_numerics.packed import Schedule
from grpo_numerics.packed.attention import packed_attention
from torch import Tensor

from .attention import heads_of, layout_of
from .bench import Bench, figure, relative_error, tera
from .stages import Line


def run(bench: Bench) -> Iterator[Line]:
    s = bench.shape
    rows = s.head_rows // 4
    hidden, weight = bench.random(rows, s.hidden), bench.random(s.vocab, s.hidden, scale=0.02)
    targets = torch.randint(0, s.vocab, (rows,), device=bench.device)
    few = 32
    mine = _head_gradients(hidden[:few], weight[:4096], targets[:few] % min(4096, s.vocab))
    exact = _head_gradients(
        hidden[:few].double(), weight[:4096].double(), targets[:few] % min(4096, s.vocab), plain=True
    )
    errors = [figure(relative_error(a, b)) for a, b in zip(mine, exact, strict=True)]
    yield {"what": "head", "error_hidden": errors[0], "error_weight": errors[1]}
    ms = bench.ms(lambda: _head_gradients(hidden, weight, targets), times=3)
    flop = 8.0 * rows * s.hidden * s.vocab
    yield {"what": "head, forward and backward", "rows": rows, "ms": figure(ms), "tflops": tera(flop, ms)}
    layout = layout_of(bench, [0])
    schedule = Schedule(layout, bench.device)
    heads = heads_of(bench, layout.tokens)

    def attention_gradients() -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in heads]
        out = packed_attention(leaves[0], leaves[1], leaves[2], schedule, scale=s.head_dim**-0.5)
        return torch.autograd.grad(out.float().square().sum(), leaves)

    first, again = attention_gradients(), attention_gradients()
    ms = bench.ms(attention_gradients, times=3)
    flop = 14.0 * s.head_dim * s.heads * float((layout.positions + 1).sum())
    same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    line: Line = {"what": "attention, forward and backward", "ms": figure(ms), "tflops": tera(flop, ms)}
    yield line | {"same_bits_again": same, "nan": any(bool(g.isnan().any()) for g in first)}


def _head_gradients(hidden: Tensor, weight: Tensor, targets: Tensor, *, plain: bool = False) -> tuple[Tensor, ...]:
    leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
    scores = (
        token_logprobs(leaves[0] @ leaves[1].T, targets) if plain else fused_logprobs(leaves[0], leaves[1], targets)
    )
    return torch.autograd.grad(scores.sum(), leaves)
