"""What is private to torch: this module alone names it, and looks it up when it is first needed.

A private operator may be renamed, or take other arguments, in any release. So before its first use it answers two small
questions whose answers are known, forward and backward; if it is not there or answers otherwise, the log names this torch and
`flash_on_cpu` is False: callers then compute without it, slower and as right. What a CPU can do counts as not there when this
torch cannot tell.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import torch.cpu
from torch import Tensor

log = logging.getLogger(__name__)

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"
# Of a trial's numbers, all of them below 2: fp32 keeps them to 1e-6, and an argument that is taken for another is off by 1e-1.
_TOLERANCE = 1e-3
_SEGMENTS = "_flash_attention_forward"
_HALF_TOLERANCE = 1e-2  # the same in fp16, which keeps them to 1e-3


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Blocked attention on the CPU, without a score matrix. q, k, v (n, H, L or S, D); bias: broadcast to (n, H, L, S), added
    to the scaled scores. Returns out (n, H, L, D) and its log-sum-exp (n, H, L) fp32."""
    return getattr(torch.ops.aten, _FORWARD)(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)


def flash_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v, from what `flash_forward` returned and the gradient of its output."""
    return getattr(torch.ops.aten, _BACKWARD)(d_out, q, k, v, out, lse, 0.0, causal, attn_mask=bias, scale=scale)


@cache
def flash_on_cpu() -> bool:
    """Whether this torch has both operators as they are called here. Found out once; a warning says so when it has not."""
    if (fault := flash_fault()) is None:
        return True
    log.warning("torch %s: %s; packed attention on the CPU takes the plain kernel instead", torch.__version__, fault)
    return False


def flash_fault() -> str | None:
    """What is wrong with the operators of this torch; None: nothing."""
    for causal, bias in ((True, None), (False, torch.tensor([[0.0, -torch.inf, 0.0], [0.0, 0.0, -torch.inf]]))):
        try:
            answers = _trial(causal, bias)
        except (
            AttributeError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # as torch words it: no such operator, arguments
            return f"{_FORWARD} is not what it was ({type(error).__name__}: {' '.join(str(error).split()):.200})"
        for name, got, right in answers:
            if got.shape != right.shape or not (got.double() - right).abs().max() < _TOLERANCE:
                return f"{_FORWARD} gives another {name} than attention has"
    return None


@torch.inference_mode()
def _trial(causal: bool, bias: Tensor | None) -> list[tuple[str, Tensor, Tensor]]:
    """(name, the operators' answer, attention written out in fp64) for two queries over three keys, or two where causal."""
    keys, scale = 3 if bias is not None else 2, 0.6
    q, k, v, d_out = (torch.sin(torch.arange(float(rows * 8), device="cpu") + shift).view(1, 1, rows, 8)
                      for shift, rows in enumerate((2, keys, keys, 2)))  # fmt: skip
    out, lse = flash_forward(q, k, v, causal, bias, scale)
    gradients = flash_backward(d_out, q, k, v, out, lse, causal, bias, scale)
    q, k, v, d_out = (t.double() for t in (q, k, v, d_out))
    hidden = torch.full((2, 2), -torch.inf, dtype=torch.float64).triu(1) if bias is None else bias
    scores = q @ k.transpose(2, 3) * scale + hidden
    weights = torch.softmax(scores, -1)
    d_weights = d_out @ v.transpose(2, 3)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * scale
    right = (
        weights @ v,
        scores.logsumexp(-1),
        d_scores @ k,
        d_scores.transpose(2, 3) @ q,
        weights.transpose(2, 3) @ d_out,
    )
    names = ("output", "log-sum-exp", "gradient of q", "gradient of k", "gradient of v")
    return list(zip(names, (out, lse, *gradients), right, strict=True))


def flash_of_segments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Flash attention on a GPU, segment by segment, causal from the lower right corner. q (T, H, D), k and v (T', H_kv, D),
    fp16 or bf16; cu_q, cu_k (S + 1,) int32: where each segment's begin. Returns out (T, H, D), log-sum-exp (H, T) fp32."""
    out, logsumexp, *_ = getattr(torch.ops.aten, _SEGMENTS)(
        q, k, v, cu_q, cu_k, max_q, max_k, 0.0, True, False,
        scale=scale, window_size_left=-1 if window is None else window - 1, window_size_right=0,
    )  # fmt: skip
    return out, logsumexp


@cache
def flash_on_gpu(device: torch.device) -> bool:
    """Whether this torch has that operator as it is called here. Found out once a device; a warning says so when it has not."""
    if (fault := segments_fault(device)) is None:
        return True
    log.warning("torch %s: %s; packed attention on %s does without it", torch.__version__, fault, device)
    return False


@torch.inference_mode()
def segments_fault(device: torch.device) -> str | None:
    """What is wrong with the operator of this torch on this GPU: two queries over three keys, against fp64. None: nothing."""
    q, k, v = (torch.sin(torch.arange(float(rows * 16), device=device) + shift).view(rows, 2, 8).half()
               for shift, rows in enumerate((2, 3, 3)))  # fmt: skip
    cu_q, cu_k = (torch.tensor([0, rows], dtype=torch.int32, device=device) for rows in (2, 3))
    try:
        answers = flash_of_segments(q, k, v, cu_q, cu_k, 2, 3, 0.6, None)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return f"{_SEGMENTS} is not what it was ({type(error).__name__}: {' '.join(str(error).split()):.200})"
    q, k, v = (t.double().transpose(0, 1) for t in (q, k, v))
    hidden = torch.full((2, 3), -torch.inf, dtype=torch.float64, device=device).triu(2)
    scores = q @ k.transpose(1, 2) * 0.6 + hidden
    right = (torch.softmax(scores, -1) @ v).transpose(0, 1), scores.logsumexp(-1)
    for name, got, known in zip(("output", "log-sum-exp"), answers, right, strict=True):
        if got.shape != known.shape or not (got.double() - known).abs().max() < _HALF_TOLERANCE:
            return f"{_SEGMENTS} gives another {name} than attention has"
    return None


def cpu_has_amx() -> bool:
    """Whether this CPU multiplies tiles of bf16 (AMX), as far as this torch can tell."""
    return _cpu_has("_is_amx_tile_supported")


def cpu_has_avx512_bf16() -> bool:
    """Whether this CPU has products of bf16 among its AVX-512 instructions, as far as this torch can tell."""
    return _cpu_has("_is_avx512_bf16_supported")


def _cpu_has(name: str) -> bool:
    tell = getattr(torch.cpu, name, None)
    return tell is not None and bool(tell())
