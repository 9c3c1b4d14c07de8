"""Attention of a whole stream in one launch: a program walks the keys of its rows' sequence from the first to the diagonal.

A program owns BLOCK_M (row, query head) pairs of one segment and one key head, and reads no other sequence. Nothing is merged,
nothing is atomic, and no block size looks at the number of rows. A block that hides all its keys from a row changes nothing
of the row, to the bit: the shift stays, 2^0 = 1 rescales, and zeros are added. So a row's bits depend on its own sequence.

Formula: Dao, "FlashAttention-2", arXiv 2307.08691, algorithm 1; the tables are those of `schedule.QueryTables`.
"""

# pyright: reportMissingParameterType=false, reportArgumentType=false

import triton
import triton.language as tl

from .products import LOG2E, numbers, products, tanh, visible


@triton.jit
def take_block(
    query,
    queries,
    rest,
    sums,
    shift,
    total,
    keys,
    values,
    key_stride,
    value_stride,
    rows,
    first,
    position,
    factor,
    bend,
    window,
    D: tl.constexpr,
    REST: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    IEEE: tl.constexpr,
):
    """One block of keys: `rows` (N,) of the stream, positions from `first` on. Returns sums, shift, total."""
    key = keys + rows.to(tl.int64) * key_stride
    s = products(query, queries, key, numbers(key, None, 0, D, BLOCK_D), D + (REST if IEEE else 0), IEEE)
    if REST > 0 and not IEEE:
        s = tl.dot(rest, tl.trans(numbers(key, None, D, REST, BLOCK_REST)), s)
    if bend is not None:
        s = tanh(s * bend)
    if MASKED:
        s = tl.where(visible(position, first + tl.arange(0, rows.shape[0]), window, WINDOWED), s, float("-inf"))
    higher = tl.maximum(shift, tl.max(s, 1) * factor)
    base = higher
    if WINDOWED:  # a row may not have seen any key yet, and -inf - -inf is NaN
        base = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp2(tl.fma(s, factor, -base[:, None]))
    decay = tl.exp2(shift - base)
    total = tl.fma(total, decay, tl.sum(p, 1))
    v = numbers(values + rows.to(tl.int64) * value_stride, None, 0, DV, BLOCK_DV)
    sums = tl.dot(p.to(v.dtype), v, sums * decay[:, None], input_precision="ieee")
    return sums, higher, total


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    sinks,
    out,
    logsumexp,
    tiles,
    items,
    joints,
    q_head,
    q_row,
    k_head,
    k_row,
    v_head,
    v_row,
    heads,
    factor,
    bend,
    window,
    REPEATS: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WINDOWED: tl.constexpr,
    IEEE: tl.constexpr,
):
    """Grid: (tiles, key heads): neighbours in a wave share a key head's prompt in L2.

    In: q (H, T, D + REST), k (H_kv, T, D + REST), v (H_kv, T, DV) with numbers of a head side by side, sinks (H,) or None.
    Out: out (T, H, DV) and logsumexp (T, H) fp32, contiguous. factor: of scores on their way to powers of two; bend: what
    scores are multiplied by before tanh, or None.
    """
    tile = tiles + tl.program_id(0) * 8
    group = tl.program_id(1)
    first_pair = tl.load(tile)
    begin = tl.load(tile + 1)
    end = tl.load(tile + 2)
    at = tl.load(tile + 3)
    pair = first_pair + tl.arange(0, BLOCK_M)
    inside = begin + pair // REPEATS < end
    row = tl.minimum(begin + pair // REPEATS, end - 1)
    head = group * REPEATS + pair % REPEATS
    position = row - begin + at
    first_position = at + first_pair // REPEATS
    last_position = at + tl.minimum((first_pair + BLOCK_M - 1) // REPEATS, end - 1 - begin)

    query = q + head.to(tl.int64) * q_head + row.to(tl.int64) * q_row
    queries = numbers(query, None, 0, D, BLOCK_D)
    rest = queries
    if REST > 0:
        rest = numbers(query, None, D, REST, BLOCK_REST)
    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head
    if sinks is not None:
        shift = tl.load(sinks + head).to(tl.float32) * LOG2E
        total = tl.full((BLOCK_M,), 1.0, tl.float32)
    else:
        shift = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_DV), dtype=tl.float32)

    n = tl.arange(0, BLOCK_N)
    whole = (first_position + 1) // BLOCK_N  # blocks that every row here sees whole, window aside
    oldest = 0
    if WINDOWED:  # blocks that no row here sees
        oldest = tl.maximum(first_position - window + 1, 0) // BLOCK_N
    block = 0
    for item in range(tl.load(tile + 4), tl.load(tile + 5)):
        joint = tl.load(items + item * 4)
        after = tl.load(items + item * 4 + 1)
        start = tl.load(items + item * 4 + 2)
        count = tl.load(items + item * 4 + 3)
        for j in range(joint + tl.maximum(oldest - block, 0), after):
            sums, shift, total = take_block(
                query, queries, rest, sums, shift, total, k, v, k_row, v_row, tl.load(joints + j * BLOCK_N + n),
                (block + j - joint) * BLOCK_N, position, factor, bend, window,
                D, REST, DV, BLOCK_D, BLOCK_REST, BLOCK_DV, True, WINDOWED, IEEE,
            )  # fmt: skip
        block += after - joint
        for b in range(tl.maximum(oldest - block, 0), tl.minimum(count, whole - block)):
            sums, shift, total = take_block(
                query, queries, rest, sums, shift, total, k, v, k_row, v_row, start + b * BLOCK_N + n,
                (block + b) * BLOCK_N, position, factor, bend, window,
                D, REST, DV, BLOCK_D, BLOCK_REST, BLOCK_DV, WINDOWED, WINDOWED, IEEE,
            )  # fmt: skip
        block += count
    diagonal = tl.maximum(tl.maximum(whole, (at + BLOCK_N - 1) // BLOCK_N), oldest)
    for b in range(diagonal, last_position // BLOCK_N + 1):
        sums, shift, total = take_block(
            query, queries, rest, sums, shift, total, k, v, k_row, v_row, tl.minimum(begin - at + b * BLOCK_N + n, end - 1),
            b * BLOCK_N, position, factor, bend, window,
            D, REST, DV, BLOCK_D, BLOCK_REST, BLOCK_DV, True, WINDOWED, IEEE,
        )  # fmt: skip

    place = row.to(tl.int64) * heads + head
    dv = tl.arange(0, BLOCK_DV)
    result = (sums / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place[:, None] * DV + dv[None, :], result, mask=inside[:, None] & (dv < DV)[None, :])
    tl.store(logsumexp + place, (shift + tl.log2(total)) / LOG2E, mask=inside)
