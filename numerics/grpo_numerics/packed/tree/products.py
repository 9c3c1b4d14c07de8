"""What the forward and the backward kernel share: rows of a matrix, scores of a block, and which of them count.

Scores are kept as the matrix units give them (soft-capped: as tanh gives them) and meet their factor in one explicit
multiply-add, 2^(score * factor - shift). The compiler then has nothing to contract one way in a masked block and another in
a whole one, and a row's bits do not depend on which of the two it met.

Restricted to what Triton's interpreter has too: no inline assembly and no libdevice, hence the hand-made tanh.
"""

# Triton compiles these from source: their arguments are tiles and pointers, for which it has no Python types.
# pyright: reportMissingParameterType=false

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def numbers(rows, inside, FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(rows, BLOCK): the numbers [FIRST, FIRST + WIDTH) of the rows (pointers), zeros beyond, and where `inside` is False."""
    d = tl.arange(0, BLOCK)
    place = rows[:, None] + (FIRST + d)[None, :]
    if inside is not None:
        found = tl.load(place, mask=inside[:, None] & (d < WIDTH)[None, :], other=0.0)
    elif WIDTH == BLOCK:
        found = tl.load(place)
    else:
        found = tl.load(place, mask=(d < WIDTH)[None, :], other=0.0)
    return found


@triton.jit
def products(a, a_numbers, b, b_numbers, WIDTH: tl.constexpr, IEEE: tl.constexpr):
    """(M, N) fp32 products of rows a (M,) and b (N,), pointers, whose numbers are (M, BLOCK) and (N, BLOCK).

    IEEE: of fp32, for which there are no matrix units. Operands then lie in registers, which hold a few numbers a row at a
    time: so these are read again, from the caches, and the whole rows are not.
    """
    if IEEE:
        c = tl.arange(0, 16)
        sums = tl.zeros((a.shape[0], b.shape[0]), dtype=tl.float32)
        # + 0, unknown to the compiler, which would unroll the loop and hold all operands at once after all
        for first in range(0, WIDTH + tl.program_id(2), 16):
            inside = (first + c < WIDTH)[None, :]
            left = tl.load(a[:, None] + (first + c)[None, :], mask=inside, other=0.0)
            right = tl.load(b[:, None] + (first + c)[None, :], mask=inside, other=0.0)
            sums = tl.dot(left, tl.trans(right), sums, input_precision="ieee")
    else:
        sums = tl.dot(a_numbers, tl.trans(b_numbers))
    return sums


@triton.jit
def tanh(x):
    """tanh to 2e-7 relative: 1 - 2 / (e^2|x| + 1), and where that cancels an odd polynomial.

    The polynomial is the least-squares fit of (tanh(x) / x - 1) / x^2 in x^2 on [0, 0.6]; alone it is off by 3e-9.
    """
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp2(size * 2.0 * LOG2E) + 1.0)
    s = x * x
    p = tl.fma(tl.fma(tl.fma(tl.fma(s, -5.893945e-3, 2.0794617e-2), s, -5.3783294e-2), s, 0.13331915), s, -0.33333298)
    return tl.where(size < 0.6, tl.fma(x, s * p, x), tl.where(x < 0, -far, far))


@triton.jit
def visible(position, key_position, window, WINDOWED: tl.constexpr):
    """(rows, keys): whether a row at `position` sees a key of its own sequence at `key_position`."""
    seen = key_position[None, :] <= position[:, None]
    if WINDOWED:
        seen = seen & (position[:, None] - key_position[None, :] < window)
    return seen
