"""The way without Triton, keys gathered for torch's flash attention: with its masks written out, against the plain kernel."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from grpo_numerics.packed import PackedLayout, Schedule, packed_attention
from grpo_numerics.packed.tree import choice, gathered
from grpo_numerics.packed.tree.gathered import Gathered
from grpo_numerics.packed.tree.segments import Tree
from torch import Tensor


def written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    most_q: int,
    most_k: int,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """What torch says of its varlen flash: causal from the lower right corner, window_size_left keys before the own."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    repeats = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeats, 1) for t in (k, v))
    starts, keys = cu_q.tolist(), cu_k.tolist()
    assert most_q == max(np.diff(starts))
    assert most_k == max(np.diff(keys))
    for a, b, c, d in zip(starts, starts[1:], keys, keys[1:], strict=False):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        row = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        key = torch.arange(d - c)
        hidden = (key > row) | ((key < row - window + 1) if window is not None else torch.zeros(()).bool())
        scores = scores.masked_fill(hidden, -torch.inf)
        lse[:, a:b] = scores.logsumexp(-1)
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d])
    return out, lse


def inputs(tokens: int, sinks: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(h, tokens, 8, generator=g, dtype=torch.float32) for h in (4, 2, 2))
    return q, k, v, torch.randn(4, generator=g) if sinks else None


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("sinks", [False, True])
def test_it_gives_what_the_plain_kernel_gives(window: int | None, sinks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "flash_of_segments", written_out)
    turns = [1, 2, 3, 4, 5, 6, 7]
    prompts = [np.array(ids, np.int32) for ids in (turns[:3], turns[:5], turns, [9], [9, 8, 7, 6])]
    completions = [
        [np.array(c, np.int32) for c in of] for of in ([[4, 5], [8]], [[6, 7], [1, 1, 1]], [[2]], [[8, 7], []], [[5]])
    ]
    layout = PackedLayout.build(prompts, completions, share_prefixes=True)
    q, k, v, sink = inputs(layout.tokens, sinks)
    schedule = Schedule(layout, torch.device("cpu"))
    want = packed_attention(q, k, v, schedule, scale=0.4, window=window, sinks=sink)
    got = choice.by_flash(q, k, v, Gathered.of(Tree.of(layout)), 0.4, window, sink)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_plain_attention_on_a_gpu_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    choice._tell.cache_clear()
    with caplog.at_level(logging.WARNING, logger=choice.__name__):
        for _ in range(2):
            choice._tell("Triton is missing: pip install triton (bfloat16, head of 512)")
    assert len(caplog.records) == 1
    assert "several times slower: Triton is missing" in caplog.text
