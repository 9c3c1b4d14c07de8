"""One tile of logits inside a Triton program: products of hidden and weight, and what the model does to them.

The same order and the same rounding points as `head.tiles.LogitTiles`: GEMM with an fp32 sum, bias, logit scale,
soft-cap, temperature, symlog. Device functions only; the kernels that call them are in `forward` and `backward`.

Restricted to what Triton's interpreter has too: no inline assembly and no libdevice, hence the hand-made tanh. An
argument that a head does not have is None, which the compiler folds away.
"""

# Triton compiles these from source: their arguments are tiles and pointers, for which it has no Python types.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Where -inf would be multiplied by an exponential that is exactly 0: see `online.FAR_BELOW`.
FAR_BELOW = tl.constexpr(-1e4)


@triton.jit
def dot_products(
    hidden,
    weight,
    rows,
    columns,
    dim,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(M, N) fp32 products of hidden[rows] and weight[columns], both (., dim) with rows side by side in memory.

    rows (M,) and columns (N,) must lie inside: the caller clamps them, which costs less than a mask in the loop.
    """
    k = tl.arange(0, BLOCK_K)
    # 64 bits: vocabulary times hidden size passes 2^31 for the largest heads.
    left = hidden + rows.to(tl.int64)[:, None] * dim + k[None, :]
    right = weight + columns.to(tl.int64)[None, :] * dim + k[:, None]
    sums = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    for start in range(0, dim, BLOCK_K):
        if EVEN_K:
            a, b = tl.load(left), tl.load(right)
        else:
            inside = start + k < dim
            a = tl.load(left, mask=inside[None, :], other=0.0)
            b = tl.load(right, mask=inside[:, None], other=0.0)
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
        left += BLOCK_K
        right += BLOCK_K
    return sums


@triton.jit
def tanh(x):
    """tanh to 2e-7 relative: 1 - 2 / (e^2|x| + 1), and where that cancels an odd polynomial.

    The polynomial is the least-squares fit of (tanh(x) / x - 1) / x^2 in x^2 on [0, 0.6]; alone it is off by 3e-9.
    """
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp2(size * 2.0 * LOG2E) + 1.0)
    s = x * x
    p = (((-5.893945e-3 * s + 2.0794617e-2) * s - 5.3783294e-2) * s + 0.13331915) * s - 0.33333298
    return tl.where(size < 0.6, x + x * (s * p), tl.where(x < 0, -far, far))


@triton.jit
def biased(products, bias, columns, logit_scale):
    """Products (M, N) plus the bias of these columns, times the logit scale."""
    if bias is not None:
        products += tl.load(bias + columns)[None, :]
    if logit_scale is not None:
        products *= logit_scale
    return products


@triton.jit
def symlog(x):
    """sign(x) log1p|x|; rounded as a logit near 1 is, which is all that a log-prob can see of it."""
    size = tl.log(1.0 + tl.abs(x))
    return tl.where(x < 0, -size, size)


@triton.jit
def transformed(z, softcap, temperature, STABLEMAX: tl.constexpr):
    """Scaled logits z (M, N) to those whose softmax is wanted. temperature: (M,) or None."""
    if softcap is not None:
        z = tanh(tl.div_rn(z, softcap)) * softcap
    if temperature is not None:
        z = tl.div_rn(z, temperature[:, None])
    if STABLEMAX:
        z = symlog(z)
    return z


@triton.jit
def transformed_with_slope(z, logit_scale, softcap, temperature, STABLEMAX: tl.constexpr):
    """`transformed`, and its derivative by the products of hidden and weight."""
    slope = tl.full(z.shape, 1.0, tl.float32)
    if softcap is not None:
        flat = tanh(tl.div_rn(z, softcap))
        slope = 1.0 - flat * flat
        z = flat * softcap
    if logit_scale is not None:
        slope *= logit_scale
    if temperature is not None:
        z = tl.div_rn(z, temperature[:, None])
        slope = slope / temperature[:, None]
    if STABLEMAX:
        slope = slope / (1.0 + tl.abs(z))
        z = symlog(z)
    return z, slope
