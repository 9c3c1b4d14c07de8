"""Attention over a packed stream: a prompt's keys are read once for all who descend from it, and no mask stands for what
can be left out.

For a row the keys are those of its ancestors, whole, and those of its own segment up to itself. On a GPU one kernel walks them
(`tree`). On a CPU each part is attended to
alone, which gives an output and the log-sum-exp of its scores, and the parts are merged by those:

    out = sum_i exp(lse_i - lse) out_i,    lse = logsumexp_i lse_i        (the merge of FlashAttention and of cascade attention)

Nothing here knows of a model, and no gradient is lost: `packed_attention` is differentiable in q, k, v and the sinks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..elementwise import log_add_exp, sigmoid
from .kernels import Flash, Kernel, Plain
from .schedule import CausalCall, Schedule
from .stacked import stacked_attention
from .tree.choice import by_flash, by_triton, on_flash, on_triton, tell_of_plain


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    schedule: Schedule,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of every row of the stream over its own sequence.

    q: (H, T, D); k, v: (H_kv, T, D) with H a multiple of H_kv, head h reading key head h // (H // H_kv). T is
    `schedule.padded_tokens`. scale multiplies q.k; softcap: scores become softcap * tanh(score / softcap); window: keys
    further back than window - 1 are not seen; sinks: (H,) an extra logit a head that takes weight and gives nothing.
    Returns (T, H, D) in q's dtype.
    """
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    whole = (
        not softcap and sinks is None and not schedule.cuts(window) and not differentiable and q.device.type == "cpu"
    )
    if whole and schedule.blocks is not None:
        return stacked_attention(q, k, v, schedule.blocks, scale=scale)
    seen = window if schedule.exact or schedule.cuts(window) else None  # exact: one code, whatever the batch holds
    if on_triton(q, k, v):
        return by_triton(q, k, v, schedule.plan, scale, softcap or None, seen, sinks)
    if on_flash(q, k, v, softcap or None, sinks):
        return by_flash(q, k, v, schedule.gathered, scale, seen, sinks)
    tell_of_plain(q)
    plain = softcap or sinks is not None or not Flash.takes(q, k, v)
    kernel: Kernel = Plain(scale, softcap, schedule.block if schedule.exact else None) if plain else Flash(scale)
    if not differentiable:
        out, lse = _forward(q, k, v, schedule, kernel, window)
    else:
        out, lse = _PackedAttention.apply(q, k, v, schedule, kernel, window)  # pyright: ignore[reportCallIssue]
    if sinks is not None:  # joins the denominator only
        out = out * sigmoid(lse - sinks.float()).to(out.dtype)[..., None]
    return out


def _forward(
    q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, kernel: Kernel, window: int | None
) -> tuple[Tensor, Tensor]:
    """Output (T, H, D) and log-sum-exp (T, H) fp32."""
    causal_calls, cross_calls = schedule.calls(window)
    heads, tokens, _ = q.shape
    out = q.new_empty(tokens, heads, v.shape[-1])
    lse = torch.empty(tokens, heads, dtype=torch.float32, device=q.device)
    for call in causal_calls:
        part, part_lse = kernel.forward(_take(q, call), _take(k, call), _take(v, call), True, call.mask)
        _put(out, part.transpose(1, 2), call)
        _put(lse, part_lse.transpose(1, 2), call)
    for call in cross_calls:
        rows, keys = slice(call.start, call.stop), slice(call.key_start, call.key_stop)
        part, part_lse = kernel.forward(q[None, :, rows], k[None, :, keys], v[None, :, keys], False, call.mask)
        mine = slice(call.start, call.start + call.rows)
        out[mine], lse[mine] = _merge(
            out[mine],
            lse[mine],
            part[0].transpose(0, 1)[: call.rows],
            part_lse[0].transpose(0, 1)[: call.rows],
        )
    return out, lse


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two partial results over disjoint keys as one. out, part: (N, H, D); lse, part_lse: (N, H)."""
    merged = log_add_exp(lse, part_lse)
    mine, theirs = torch.exp(lse - merged)[..., None], torch.exp(part_lse - merged)[..., None]
    if out.dtype != torch.float32:
        return (out.float() * mine + part.float() * theirs).to(out.dtype), merged
    return torch.addcmul(part * theirs, out, mine), merged


class _PackedAttention(torch.autograd.Function):
    """Each call's backward from the merged output and log-sum-exp; see `kernels`."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, kernel: Kernel, window: int | None
    ) -> tuple[Tensor, Tensor]:
        out, lse = _forward(q, k, v, schedule, kernel, window)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan = (schedule, kernel, window)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_out: Tensor | None, d_lse: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        schedule, kernel, window = ctx.plan
        causal_calls, cross_calls = schedule.calls(window)
        d_out = torch.zeros_like(out) if d_out is None else d_out
        dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
        by_head = [None if t is None else t.transpose(0, 1) for t in (d_out, d_lse, out, lse)]
        for call in causal_calls:
            d_o, d_l, o, l_ = (None if t is None else _take(t, call) for t in by_head)
            if call.valid is not None:  # padding repeats a real row: its gradient must not be counted again
                assert d_o is not None
                d_o = _only_valid(d_o, call)
                d_l = None if d_l is None else _only_valid(d_l, call)
            grads = kernel.backward(d_o, d_l, *(_take(t, call) for t in (q, k, v)), o, l_, True, call.mask)
            for total, part in zip((dq, dk, dv), grads, strict=True):
                total.index_add_(1, call.index.flatten(), part.transpose(0, 1).flatten(1, 2))
        for call in cross_calls:
            rows, keys = slice(call.start, call.start + call.rows), slice(call.key_start, call.key_stop)
            d_o, d_l, o, l_ = (None if t is None else t[None, :, rows] for t in by_head)
            mask = None if call.mask is None else call.mask[: call.rows]
            grads = kernel.backward(d_o, d_l, q[None, :, rows], k[None, :, keys], v[None, :, keys], o, l_, False, mask)
            for total, part, where in zip((dq, dk, dv), grads, (rows, keys, keys), strict=True):
                total[:, where] += part[0]
        return dq, dk, dv, None, None, None


def _take(t: Tensor, call: CausalCall) -> Tensor:
    """The call's rows of (H, T, ...) as (n, H, L, ...)."""
    n, length = call.index.shape
    if call.start is not None:
        return t[:, call.start : call.start + n * length].unflatten(1, (n, length)).transpose(0, 1)
    # models leave their heads side by side in a row of the stream: gathered so, nothing but the wanted rows is read
    by_row = t.transpose(0, 1).index_select(0, call.index.flatten())
    return by_row.unflatten(0, (n, length)).transpose(1, 2)


def _put(into: Tensor, part: Tensor, call: CausalCall) -> None:
    """Write (n, L, H, ...) to the call's rows of (T, H, ...); padding rows are dropped."""
    if call.start is not None:
        n, length = call.index.shape
        into[call.start : call.start + n * length].unflatten(0, (n, length)).copy_(part)
    elif call.valid is None:
        into[call.index.flatten()] = part.flatten(0, 1)
    else:
        into[call.index.flatten()[call.valid]] = part.flatten(0, 1)[call.valid]


def _only_valid(t: Tensor, call: CausalCall) -> Tensor:
    """(n, H, L, ...) with the padding rows zeroed."""
    assert call.valid is not None
    keep = torch.zeros(call.index.numel(), dtype=torch.bool, device=t.device)
    keep[call.valid] = True
    keep = keep.view(call.index.shape)[:, None, :]
    return t * (keep if t.dim() == 3 else keep[..., None])
