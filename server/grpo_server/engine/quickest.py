"""Which of two right ways is quicker on this machine: tried at load on small shapes like the model's, for a fraction of a
second, never looked up in a list of processors.

Only fast mode takes another attention or head. Both ways are within the precision that it promises, so that a start which
measures otherwise changes the speed, and scores by less than a body in bfloat16 is off anyway. The type of the body, which is
chosen so in every mode but exact, is in `/v1/reference`: units for bfloat16 halve the time, their lack multiplies it by ten,
and no noise turns one into the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from grpo_numerics import HeadScores, default_tile, score_rows
from grpo_numerics.packed import PackedLayout, Schedule, packed_attention

from .anatomy import Anatomy

log = logging.getLogger(__name__)

_ROUNDS = 7
# After so many seconds of one trial no new round begins.
_SECONDS = 0.5
# Share of the usual way's time that another must stay under: less is within what a busy machine makes of equal times.
_WORTH = 0.9
_ROWS = 512


@torch.inference_mode()
def is_quicker(
    other: Callable[[], object], usual: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> tuple[bool, float]:
    """Whether `other` takes clearly less time than `usual`, and the share of it. They take turns, and the best
    time of each counts."""
    best = [float("inf"), float("inf")]
    for way in (other, usual):
        way()  # warm
    begin = clock()
    for _ in range(_ROUNDS):
        for which, way in enumerate((other, usual)):
            start = clock()
            way()
            best[which] = min(best[which], clock() - start)
        if clock() - begin > _SECONDS:
            break
    share = best[0] / max(best[1], 1e-9)
    return share < _WORTH, share


def bfloat16_products() -> bool:
    """Whether the CPU multiplies bfloat16 faster than float32."""
    # small: without units it takes hundreds of times as long
    wide, square = _numbers(_ROWS, 512), _numbers(512, 512)
    half = wide.bfloat16()
    quicker, share = is_quicker(partial(torch.mm, half, square.bfloat16()), partial(torch.mm, wide, square))
    log.info("bfloat16 products take %.2f of the time of float32 here", share)
    return quicker


def stacked_attention(parts: Anatomy) -> bool:
    """Whether attention over a stack of keys is quicker than a call for each part, for heads like the model's."""
    heads, kv_heads, dim = parts.heads
    if parts.device.type != "cpu" or heads % kv_heads:
        return False
    prompt, completions = np.zeros(256, np.int32), [np.full(65, i, np.int32) for i in range(4)]
    layout = PackedLayout.build([prompt], [completions])
    q, k, v = (
        _numbers(layout.tokens, n, dim).to(parts.weight.dtype).transpose(0, 1) for n in (heads, kv_heads, kv_heads)
    )
    other, usual = (
        partial(packed_attention, q, k, v, Schedule(layout, parts.device, stacked=stacked), scale=dim**-0.5)
        for stacked in (True, False)
    )
    quicker, share = is_quicker(other, usual)
    log.info("attention over a stack of keys takes %.2f of the time of a call for each part here", share)
    return quicker


def quickest_head(head: Callable[..., HeadScores], parts: Anatomy) -> Callable[..., HeadScores]:
    """`head`, with products in bfloat16 around a constant a row where those are quicker than products in float32."""
    weight = parts.weight
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return head
    few = weight[: 2 * default_tile(weight.shape[1]).vocab]
    rows, targets = _numbers(_ROWS, weight.shape[1]).to(weight.dtype), torch.zeros(_ROWS, dtype=torch.int64)
    usual = partial(score_rows, rows, few, targets)
    quicker, share = is_quicker(partial(usual, shifted=True), usual)
    log.info("the head's products in bfloat16 take %.2f of the time of float32 here", share)
    return partial(head, shifted=True) if quicker else head


def _numbers(*shape: int) -> torch.Tensor:
    """Numbers in [0, 1) that leave the process's own generator where it is."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))
