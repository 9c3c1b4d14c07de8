"""The gradient of the head, recomputing tiles, without atomics.

Three products of the same size, and no more: the logits once again (`logits_gradient_kernel`, which turns them into
their gradient before they leave the registers), that gradient times the weight, and its transpose times the hidden
states (`accumulate_kernel` both times, over row blocks and over vocabulary blocks). The gradient of one (row block,
vocabulary block) is all that is held between them: a program that kept its (M, D) sums to itself instead would have
no registers for them, and would have to compute the logits a second time for the other of the two.

Formulas in `head.gradient`.
"""

# pyright: reportMissingParameterType=false

import triton
import triton.language as tl

from .logits import FAR_BELOW, LOG2E, biased, dot_products, transformed_with_slope


@triton.jit
def logits_gradient_kernel(
    hidden,
    weight,
    bias,
    temperature,
    targets,
    at_target,
    of_logprob,
    of_entropy,
    logsumexp,
    entropy,
    out,
    bias_out,
    rows,
    vocab,
    dim,
    out_stride,
    logit_scale,
    softcap,
    STABLEMAX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out (R, v), its own dtype: the gradient at the products of hidden and weight. Grid: (row blocks, v blocks).

    weight (v, dim) and bias (v,) or None: of a slice of the vocabulary; targets (R,): counted from its start, and
    anything where the target is elsewhere. at_target (R,): the target's own gradient before the slope. of_logprob
    (R,), of_entropy (R,) or None: incoming. logsumexp (R,), entropy (R,) or None: of the row. bias_out (row blocks, v)
    or None: the sums over each row block.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    held, known = tl.minimum(row, rows - 1), tl.minimum(column, vocab - 1)
    warmth = temperature
    if temperature is not None:
        warmth = tl.load(temperature + held)
    z = dot_products(hidden, weight, held, known, dim, BLOCK_K, EVEN_K, PRECISION)
    z = biased(z, bias, known, logit_scale)
    z, slope = transformed_with_slope(z, logit_scale, softcap, warmth, STABLEMAX)
    log_p = z - tl.load(logsumexp + held)[:, None]
    p = tl.exp2(log_p * LOG2E)
    incoming = tl.load(of_logprob + held)[:, None]
    if of_entropy is not None:
        surprise = tl.maximum(log_p, FAR_BELOW) + tl.load(entropy + held)[:, None]
        incoming += tl.load(of_entropy + held)[:, None] * surprise
    gradient = -p * incoming
    is_target = column[None, :] == tl.load(targets + held)[:, None]
    gradient = tl.where(is_target, tl.load(at_target + held)[:, None], gradient) * slope
    inside = (row < rows)[:, None] & (column < vocab)[None, :]
    place = row[:, None] * out_stride + column[None, :]
    tl.store(out + place, gradient.to(out.dtype.element_ty), mask=inside)
    if bias_out is not None:
        sums = tl.sum(tl.where(inside, gradient, 0.0), 0)
        tl.store(bias_out + tl.program_id(0) * vocab + column, sums, mask=column < vocab)


@triton.jit
def accumulate_kernel(
    left,
    right,
    out,
    height,
    width,
    depth,
    left_stride_m,
    left_stride_k,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out (height, width) = or, with ADD, += left (height, depth) times right (depth, width), summed in fp32.

    left: any strides, so that it may be a transpose. right and out: rows side by side. Grid: (m blocks, n blocks).
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Masks and not clamped indices: m or n is what lies side by side here, and a clamp would hide that.
    in_m, in_n = m < height, n < width
    k = tl.arange(0, BLOCK_K)
    a_place = left + m[:, None] * left_stride_m + k[None, :] * left_stride_k
    b_place = right + k[:, None] * width + n[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, depth, BLOCK_K):
        in_k = start + k < depth
        a = tl.load(a_place, mask=in_m[:, None] & in_k[None, :], other=0.0)
        b = tl.load(b_place, mask=in_k[:, None] & in_n[None, :], other=0.0)
        sums = tl.dot(a, b.to(a.dtype), sums, input_precision=PRECISION)
        a_place += BLOCK_K * left_stride_k
        b_place += BLOCK_K * width
    place = m.to(tl.int64)[:, None] * width + n[None, :]
    inside = in_m[:, None] & in_n[None, :]
    if ADD:
        sums += tl.load(out + place, mask=inside, other=0.0)
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=inside)
