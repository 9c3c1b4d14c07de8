"""The tree attention as an operator of torch: `torch.ops.grpo_numerics.tree_attention`, with shapes and gradient registered.

So it goes through `torch.compile`, FakeTensor and dispatch modes as torch's own do. The kernels are compiled at first use; what
an operator takes is checked by `choice`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from . import blocks
from .blocks import Blocks, HeadSize, block_of

_LOG2E = 1.4426950408889634


@torch.library.custom_op("grpo_numerics::tree_attention", mutates_args=())
def tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    tables: Sequence[Tensor],
    scale: float,
    softcap: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """q (H, T, D), k (H_kv, T, D), v (H_kv, T, D_v), sinks (H,) -> out (T, H, D_v) in q's dtype, log-sum-exp (T, H) fp32, nats.

    tables: int32 on q's device, as `plan.TreePlan` makes them: tiles, items and joints of the forward; where a gradient is
    wanted those of the backward's queries and the tiles and runs of its keys, too. scale > 0. One launch.
    """
    from .forward import forward_kernel

    q, k, v = (_rows(t) for t in (q, k, v))
    (heads, tokens, dim), (groups, _, dim_v) = q.shape, v.shape
    out = q.new_empty(tokens, heads, dim_v)
    logsumexp = q.new_empty(tokens, heads, dtype=torch.float32)
    tiles, items, joints = tables[:3]
    size = HeadSize.of(dim)
    shape = blocks.forward_blocks(q.dtype, dim, dim_v, capability(q))
    _launch(
        forward_kernel, (len(tiles), groups), shape,
        q, k, v, sinks, out, logsumexp, tiles, items, joints, *_strides(q, k, v), heads,
        *_scores(scale, softcap), window or 0,
        REPEATS=heads // groups, D=size.whole, REST=size.rest, DV=dim_v,
        BLOCK_D=block_of(size.whole), BLOCK_REST=block_of(size.rest or 1),
        BLOCK_DV=block_of(dim_v), WINDOWED=window is not None,
    )  # fmt: skip
    return out, logsumexp


@tree_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    heads, tokens, _dim = q.shape
    return q.new_empty(tokens, heads, v.shape[-1]), q.new_empty(tokens, heads, dtype=torch.float32)


@torch.library.custom_op("grpo_numerics::tree_attention_backward", mutates_args=())
def tree_attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    tables: Sequence[Tensor],
    scale: float,
    softcap: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq (T, H, D), dk (T, H_kv, D), dv (T, H_kv, D_v), and sum(d_out out) (T, H) fp32. Two launches."""
    from .backward import backward_kernel, deltas_kernel

    q, k, v = (_rows(t) for t in (q, k, v))
    (heads, tokens, dim), (groups, _, dim_v) = q.shape, v.shape
    dq, dk, dv = q.new_empty(tokens, heads, dim), k.new_empty(tokens, groups, dim), v.new_empty(tokens, groups, dim_v)
    delta = torch.empty_like(logsumexp)
    tiles, items, joints, key_tiles, runs = tables[3:]
    d_out = d_out.contiguous()
    with torch.cuda.device_of(q):
        cast(Any, deltas_kernel)[(-(-tokens * heads // 32),)](
            d_out, out, delta, tokens * heads, DV=dim_v, BLOCK_M=32, BLOCK_DV=block_of(dim_v), num_warps=4
        )
    shape = blocks.backward_blocks(q.dtype, dim, dim_v, capability(q))
    _launch(
        backward_kernel, (len(key_tiles) + len(tiles), groups), shape,
        q, k, v, logsumexp, d_out, delta, dq, dk, dv,
        tiles, items, joints, key_tiles, runs, len(key_tiles), *_strides(q, k, v), heads,
        scale, *_scores(scale, softcap), window or 0,
        REPEATS=heads // groups, D=dim, DV=dim_v,
        BLOCK_D=block_of(dim), BLOCK_DV=block_of(dim_v),
        WINDOWED=window is not None,
    )  # fmt: skip
    return dq, dk, dv, delta


@tree_attention_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, *_settings: Any
) -> tuple[Tensor, ...]:
    (heads, tokens, dim), (groups, _, dim_v) = q.shape, v.shape
    return (
        q.new_empty(tokens, heads, dim),
        k.new_empty(tokens, groups, dim),
        v.new_empty(tokens, groups, dim_v),
        torch.empty_like(logsumexp),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, sinks, tables, *settings = inputs
    ctx.save_for_backward(q, k, v, sinks, *output, *tables)
    ctx.settings = settings
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    q, k, v, sinks, out, logsumexp, *tables = ctx.saved_tensors
    nothing = ([None] * len(tables), None, None, None)
    if d_out is None:
        return None, None, None, None, *nothing
    dq, dk, dv, delta = tree_attention_backward(d_out, q, k, v, out, logsumexp, tables, *ctx.settings)
    d_sinks = None
    if sinks is not None:  # its weight in the softmax gives nothing: all that comes back to it is -delta
        d_sinks = -(torch.exp(sinks.float() - logsumexp) * delta).sum(0).to(sinks.dtype)
    return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1), d_sinks, *nothing


tree_attention.register_autograd(_backward, setup_context=_setup)


def _launch(kernel: Any, grid: tuple[int, int], shape: Blocks, *arguments: Any, **constants: Any) -> None:
    """On the device of the first argument. Multiply-adds fused: said here because Triton's default is about to change."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](
            *arguments,
            **constants,
            BLOCK_M=shape.m,
            BLOCK_N=shape.n,
            IEEE=arguments[0].dtype == torch.float32,
            num_warps=shape.warps,
            num_stages=shape.stages,
            enable_fp_fusion=True,
        )


def capability(t: Tensor) -> tuple[int, int]:
    """Compute capability of the tensor's device; of the interpreter that of the oldest that the kernels run on."""
    return torch.cuda.get_device_capability(t.device) if t.is_cuda and torch.cuda.is_available() else (8, 0)


def _rows(t: Tensor) -> Tensor:
    """With the numbers of a head side by side in memory."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _strides(*heads: Tensor) -> tuple[int, ...]:
    return tuple(stride for t in heads for stride in t.stride()[:2])


def _scores(scale: float, softcap: float | None) -> tuple[float, float | None]:
    """factor and bend of the kernels."""
    return (scale * _LOG2E, None) if softcap is None else (softcap * _LOG2E, scale / softcap)
