"""Which code computes attention over a stream on a GPU: the tree kernels, torch's flash attention, or neither.

All give the same figures up to rounding, so nobody has to choose.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from ...torch_ops import flash_on_gpu
from ...triton_support import OLDEST, interpreted, lacking
from . import blocks
from .gathered import Gathered, gathered_attention
from .op import capability, tree_attention
from .plan import Keys, Queries, TreePlan

log = logging.getLogger(__name__)

_LARGEST_HEAD = 256
_HALVES = frozenset({torch.bfloat16, torch.float16})


def on_triton(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the tree kernels take these: an NVIDIA GPU from Ampere on, Triton installed, one dtype of at most 32 bits, heads
    of at most 256 numbers."""
    alike = q.dtype == k.dtype == v.dtype and q.dtype in (*_HALVES, torch.float32)
    if not alike or max(q.shape[-1], v.shape[-1]) > _LARGEST_HEAD or lacking():
        return False
    if not q.is_cuda:
        return interpreted(q)
    return capability(q) >= OLDEST and torch.version.hip is None


def on_flash(q: Tensor, k: Tensor, v: Tensor, softcap: float | None, sinks: Tensor | None) -> bool:
    """Whether torch's flash attention takes these. Its log-sum-exp has no gradient, which sinks would need."""
    if not q.is_cuda or softcap is not None or q.dtype not in _HALVES or not q.dtype == k.dtype == v.dtype:
        return False
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if q.shape[-1] != v.shape[-1] or q.shape[-1] > _LARGEST_HEAD or (sinks is not None and needs_gradient):
        return False
    there = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    return capability(q) >= OLDEST and there and flash_on_gpu(q.device)


def by_triton(
    q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, scale: float, softcap: float | None, window: int | None,
    sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """(T, H, D_v), as `packed_attention` says."""
    repeats, sizes = q.shape[0] // k.shape[0], (q.dtype, q.shape[-1], v.shape[-1], capability(q))
    shape = blocks.forward_blocks(*sizes)
    tables = plan.tables(Queries(repeats, shape.m, shape.n), q.device)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, v, sinks)):
        shape = blocks.backward_blocks(*sizes)
        tables += plan.tables(Queries(repeats, shape.m, shape.n), q.device)
        tables += plan.tables(Keys(shape.n, window is not None), q.device)
    return tree_attention(q, k, v, sinks, tables, scale, softcap, window)[0]


def by_flash(
    q: Tensor, k: Tensor, v: Tensor, gathered: Gathered, scale: float, window: int | None, sinks: Tensor | None
) -> Tensor:
    """(T, H, D), as `packed_attention` says."""
    out, logsumexp = gathered_attention(q, k, v, gathered, scale=scale, window=window)
    if sinks is not None:  # joins the denominator only
        out = out * torch.sigmoid(logsumexp - sinks.float()).to(out.dtype)[..., None]
    return out


def tell_of_plain(q: Tensor) -> None:
    """A line in the log, once: that attention on this GPU is slow, what that costs, and what would help."""
    if q.is_cuda:
        why = lacking() or "a head or dtype that the kernels do not take"
        _tell(f"{why} ({str(q.dtype).removeprefix('torch.')}, head of {q.shape[-1]})")


@functools.cache
def _tell(reason: str) -> None:
    log.warning(
        "attention runs in torch's plain operations: hundreds of launches a layer, scores in memory, several times slower: %s",
        reason,
    )
