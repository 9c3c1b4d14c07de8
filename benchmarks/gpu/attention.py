"""Attention of one layer over a group: time, error against float64, the same bits in any company, next to torch's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from grpo_numerics.packed import PackedLayout, Schedule
from grpo_numerics.packed.attention import packed_attention
from torch import Tensor

from .bench import Bench, figure, relative_error, tera
from .stages import Line

ROWS_CHECKED = 24


def run(bench: Bench) -> Iterator[Line]:
    s = bench.shape
    layout = layout_of(bench, [0])
    schedule = Schedule(layout, bench.device, exact=True)
    q, k, v = heads_of(bench, schedule.padded_tokens)
    scale = s.head_dim**-0.5
    out = packed_attention(q, k, v, schedule, scale=scale)
    rows = torch.randperm(layout.tokens)[:ROWS_CHECKED].tolist()
    error = relative_error(out[rows], reference(q, k, v, layout, rows, scale))
    yield {"what": "forward", "error_f64": figure(error), "nan": bool(out.isnan().any())}
    ms = bench.ms(lambda: packed_attention(q, k, v, schedule, scale=scale))
    flop = 4.0 * s.head_dim * s.heads * float((layout.positions + 1).sum())
    again = packed_attention(q, k, v, schedule, scale=scale)
    yield {"what": "forward", "ms": figure(ms), "tflops": tera(flop, ms), "same_bits_again": torch.equal(out, again)}
    yield {"what": "bits in company", **in_company(bench, q, k, v, out)}
    yield {"what": "float32", **in_float32(bench, layout, schedule, scale)}
    yield padded(bench)


def layout_of(bench: Bench, seeds: list[int], prompts: int | None = None) -> PackedLayout:
    """Groups of the shape, the first cut to `prompts` tokens of prompt and to ragged completions."""
    groups = [bench.group(seed) for seed in seeds]
    if prompts is not None:
        prompt, completions = groups[0]
        groups[0] = prompt[:prompts], tuple(c[: 3 + 5 * i] for i, c in enumerate(completions))
    return PackedLayout.build([p for p, _ in groups], [c for _, c in groups])


def heads_of(bench: Bench, rows: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """q (H, T, D), k and v (H_kv, T, D), laid out as a model leaves them: by rows."""
    s = bench.shape
    q, k, v = (bench.random(rows, n, s.head_dim).to(dtype or bench.dtype) for n in (s.heads, s.kv_heads, s.kv_heads))
    return q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)


def reference(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, rows: list[int], scale: float) -> Tensor:
    """(rows, H, D) in float64."""
    repeats, pieces = q.shape[0] // k.shape[0], []
    for row in rows:
        own = next(s for s in layout.segments if s.start <= row < s.end)
        above = [s for s in layout.segments if s.end <= own.start < s.reach]
        index = torch.cat([torch.arange(s.start, s.end) for s in above] + [torch.arange(own.start, row + 1)]).to(
            q.device
        )
        keys, values = (x[:, index].double().repeat_interleave(repeats, 0) for x in (k, v))
        weights = (torch.einsum("hd,hkd->hk", q[:, row].double(), keys) * scale).softmax(-1)
        pieces.append(torch.einsum("hk,hkd->hd", weights, values))
    return torch.stack(pieces)


def in_company(bench: Bench, q: Tensor, k: Tensor, v: Tensor, alone: Tensor) -> Line:
    """The group behind another one, of other lengths, in the same stream."""
    both = layout_of(bench, [7, 0], prompts=bench.shape.prompt // 3)
    schedule = Schedule(both, bench.device, exact=True)
    own = layout_of(bench, [0]).tokens
    before, behind = both.tokens - own, schedule.padded_tokens - both.tokens
    joined = [
        torch.cat([front, x[:, :own], front[:, :1].expand(-1, behind, -1)], 1)
        for front, x in zip(heads_of(bench, before), (q, k, v), strict=True)
    ]
    out = packed_attention(joined[0], joined[1], joined[2], schedule, scale=bench.shape.head_dim**-0.5)
    return {"equal": torch.equal(out[before : both.tokens], alone[:own]), "rows_in_front": before}


def in_float32(bench: Bench, layout: PackedLayout, schedule: Schedule, scale: float) -> Line:
    q, k, v = heads_of(bench, schedule.padded_tokens, torch.float32)
    rows = torch.randperm(layout.tokens)[:ROWS_CHECKED].tolist()
    out = packed_attention(q, k, v, schedule, scale=scale)
    ms = bench.ms(lambda: packed_attention(q, k, v, schedule, scale=scale), times=2)
    return {"error_f64": figure(relative_error(out[rows], reference(q, k, v, layout, rows, scale))), "ms": figure(ms)}


def padded(bench: Bench) -> Line:
    """What a padded trainer pays: every completion with its prompt, torch's own causal attention."""
    s = bench.shape
    shape = (s.group, s.heads, s.prompt + s.completion, s.head_dim)
    q, k, v = (bench.random(*shape) for _ in range(3))
    ms = bench.ms(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    flop = 2.0 * s.head_dim * s.heads * s.group * shape[2] ** 2
    return {"what": "padded, torch", "ms": figure(ms), "tflops": tera(flop, ms)}
