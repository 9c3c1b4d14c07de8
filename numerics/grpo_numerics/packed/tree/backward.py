"""All gradients of the tree attention in one launch, after one that sums a number a row; scores computed anew, no atomics.

Two kinds of program. One owns keys of a segment: its queries are the rows after them, in the segment and below it, and it sums
their gradients into dk and dv. The other owns (row, head) pairs as in the forward and walks their keys into dq. The few long
programs of a prompt's keys start first, and the many short ones fill the device beside them.

With P = exp(S - logsumexp) and delta = sum(dO O) a row: dV = P^T dO, dS = P (dO V^T - delta), dQ = dS K, dK = dS^T Q
(FlashAttention-2, appendix B).
"""

# pyright: reportMissingParameterType=false, reportArgumentType=false

import triton
import triton.language as tl

from .products import LOG2E, numbers, products, tanh, visible


@triton.jit
def deltas_kernel(d_out, out, deltas, rows, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr):
    """deltas (rows,) fp32: the sums of d_out times out, both (rows, DV) contiguous."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < rows
    up = numbers(d_out + row.to(tl.int64) * DV, inside, 0, DV, BLOCK_DV)
    result = numbers(out + row.to(tl.int64) * DV, inside, 0, DV, BLOCK_DV)
    tl.store(deltas + row, tl.sum(up.to(tl.float32) * result.to(tl.float32), 1), mask=inside)


@triton.jit
def take_queries(
    sum_k,
    sum_v,
    key,
    keys,
    value,
    values,
    real,
    key_position,
    q,
    d_out,
    logsumexp,
    deltas,
    q_head,
    q_row,
    start,
    stop,
    at,
    group,
    heads,
    factor,
    bend,
    window,
    REPEATS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WINDOWED: tl.constexpr,
    IEEE: tl.constexpr,
):
    """Rows [start, stop), the first at position `at`, into the sums of dk and dv. key, value: pointers to the rows."""
    for first in range(0, (stop - start) * REPEATS, BLOCK_M):
        pair = first + tl.arange(0, BLOCK_M)
        inside = start + pair // REPEATS < stop
        row = tl.minimum(start + pair // REPEATS, stop - 1)
        head = group * REPEATS + pair % REPEATS
        place = row.to(tl.int64) * heads + head
        query = q + head.to(tl.int64) * q_head + row.to(tl.int64) * q_row
        queries = numbers(query, None, 0, D, BLOCK_D)
        ups = numbers(d_out + place * DV, None, 0, DV, BLOCK_DV)
        s = products(key, keys, query, queries, D, IEEE)
        if bend is not None:
            s = tanh(s * bend)
        p = tl.exp2(tl.fma(s, factor, -(tl.load(logsumexp + place) * LOG2E)[None, :]))
        seen = tl.trans(visible(row - start + at, key_position, window, WINDOWED))
        p = tl.where(seen & real[:, None] & inside[None, :], p, 0.0)
        sum_v = tl.dot(p.to(ups.dtype), ups, sum_v, input_precision="ieee")
        ds = p * (products(value, values, d_out + place * DV, ups, DV, IEEE) - tl.load(deltas + place)[None, :])
        if bend is not None:
            ds = ds * tl.fma(-s, s, 1.0)
        sum_k = tl.dot(ds.to(queries.dtype), queries, sum_k, input_precision="ieee")
    return sum_k, sum_v


@triton.jit
def take_keys(
    sums,
    query,
    queries,
    up,
    ups,
    peak,
    delta,
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
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    IEEE: tl.constexpr,
):
    """One block of keys, as in `forward.take_block`, into the sums of dq."""
    key = keys + rows.to(tl.int64) * key_stride
    value = values + rows.to(tl.int64) * value_stride
    numbers_of_keys = numbers(key, None, 0, D, BLOCK_D)
    s = products(query, queries, key, numbers_of_keys, D, IEEE)
    if bend is not None:
        s = tanh(s * bend)
    p = tl.exp2(tl.fma(s, factor, -peak[:, None]))
    if MASKED:
        p = tl.where(visible(position, first + tl.arange(0, rows.shape[0]), window, WINDOWED), p, 0.0)
    ds = p * (products(up, ups, value, numbers(value, None, 0, DV, BLOCK_DV), DV, IEEE) - delta[:, None])
    if bend is not None:
        ds = ds * tl.fma(-s, s, 1.0)
    return tl.dot(ds.to(numbers_of_keys.dtype), numbers_of_keys, sums, input_precision="ieee")


@triton.jit
def backward_kernel(
    q,
    k,
    v,
    logsumexp,
    d_out,
    deltas,
    dq,
    dk,
    dv,
    tiles,
    items,
    joints,
    key_tiles,
    runs,
    key_programs,
    q_head,
    q_row,
    k_head,
    k_row,
    v_head,
    v_row,
    heads,
    scale,
    factor,
    bend,
    window,
    REPEATS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WINDOWED: tl.constexpr,
    IEEE: tl.constexpr,
):
    """Grid: (key_programs + tiles, key heads).

    As in the forward; d_out like out, deltas (T, H) fp32. Out, contiguous: dq (T, H, D), dk (T, H_kv, D), dv (T, H_kv, DV).
    scale: of scores. Tables: `schedule.QueryTables` for BLOCK_M and BLOCK_N, `schedule.KeyTables` for BLOCK_N.
    """
    group = tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    if tl.program_id(0) < key_programs:
        tile = key_tiles + tl.program_id(0) * 8
        first = tl.load(tile)
        end = tl.load(tile + 1)
        at = tl.load(tile + 2)
        real = first + n < end
        rows = tl.minimum(first + n, end - 1).to(tl.int64)
        key = k + group.to(tl.int64) * k_head + rows * k_row
        value = v + group.to(tl.int64) * v_head + rows * v_row
        keys = numbers(key, None, 0, D, BLOCK_D)
        values = numbers(value, None, 0, DV, BLOCK_DV)
        sum_k = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
        sum_v = tl.zeros((BLOCK_N, BLOCK_DV), dtype=tl.float32)
        after = at + tl.minimum(BLOCK_N, end - first) - 1 + window  # the first position that sees none of these keys
        shared = tl.load(tile + 3)
        for run in range(shared - 1, tl.load(tile + 4)):  # the segment's own rows, then those below
            below = run >= shared
            start = tl.where(below, tl.load(runs + run * 4, mask=below, other=0), first)
            stop = tl.where(below, tl.load(runs + run * 4 + 1, mask=below, other=0), end)
            begin = tl.where(below, tl.load(runs + run * 4 + 2, mask=below, other=0), at)
            if WINDOWED:
                stop = tl.minimum(stop, start + tl.maximum(after - begin, 0))
            sum_k, sum_v = take_queries(
                sum_k, sum_v, key, keys, value, values, real, at + n, q, d_out, logsumexp, deltas, q_head, q_row, start, stop,
                begin, group, heads, factor, bend, window, REPEATS, D, DV, BLOCK_M, BLOCK_D, BLOCK_DV, WINDOWED, IEEE,
            )  # fmt: skip
        of_key = rows * (heads // REPEATS) + group
        d = tl.arange(0, BLOCK_D)
        e = tl.arange(0, BLOCK_DV)
        sum_k = (sum_k * scale).to(dk.dtype.element_ty)
        tl.store(dk + of_key[:, None] * D + d[None, :], sum_k, mask=real[:, None] & (d < D)[None, :])
        sum_v = sum_v.to(dv.dtype.element_ty)
        tl.store(dv + of_key[:, None] * DV + e[None, :], sum_v, mask=real[:, None] & (e < DV)[None, :])
    else:
        tile = tiles + (tl.program_id(0) - key_programs) * 8
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
        place = row.to(tl.int64) * heads + head
        query = q + head.to(tl.int64) * q_head + row.to(tl.int64) * q_row
        queries = numbers(query, None, 0, D, BLOCK_D)
        up = d_out + place * DV
        ups = numbers(up, None, 0, DV, BLOCK_DV)
        delta = tl.load(deltas + place)
        peak = tl.load(logsumexp + place) * LOG2E
        k += group.to(tl.int64) * k_head
        v += group.to(tl.int64) * v_head
        sums = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
        whole = (first_position + 1) // BLOCK_N
        oldest = 0
        if WINDOWED:
            oldest = tl.maximum(first_position - window + 1, 0) // BLOCK_N
        block = 0
        for item in range(tl.load(tile + 4), tl.load(tile + 5)):
            joint = tl.load(items + item * 4)
            after = tl.load(items + item * 4 + 1)
            start = tl.load(items + item * 4 + 2)
            count = tl.load(items + item * 4 + 3)
            for j in range(joint + tl.maximum(oldest - block, 0), after):
                sums = take_keys(
                    sums, query, queries, up, ups, peak, delta, k, v, k_row, v_row, tl.load(joints + j * BLOCK_N + n),
                    (block + j - joint) * BLOCK_N, position, factor, bend, window,
                    D, DV, BLOCK_D, BLOCK_DV, True, WINDOWED, IEEE,
                )  # fmt: skip
            block += after - joint
            for b in range(tl.maximum(oldest - block, 0), tl.minimum(count, whole - block)):
                sums = take_keys(
                    sums, query, queries, up, ups, peak, delta, k, v, k_row, v_row, start + b * BLOCK_N + n,
                    (block + b) * BLOCK_N, position, factor, bend, window,
                    D, DV, BLOCK_D, BLOCK_DV, WINDOWED, WINDOWED, IEEE,
                )  # fmt: skip
            block += count
        diagonal = tl.maximum(tl.maximum(whole, (at + BLOCK_N - 1) // BLOCK_N), oldest)
        for b in range(diagonal, last_position // BLOCK_N + 1):
            sums = take_keys(
                sums, query, queries, up, ups, peak, delta, k, v, k_row, v_row,
                tl.minimum(begin - at + b * BLOCK_N + n, end - 1), b * BLOCK_N, position, factor, bend, window,
                D, DV, BLOCK_D, BLOCK_DV, True, WINDOWED, IEEE,
            )  # fmt: skip
        d = tl.arange(0, BLOCK_D)
        sums = (sums * scale).to(dq.dtype.element_ty)
        tl.store(dq + place[:, None] * D + d[None, :], sums, mask=inside[:, None] & (d < D)[None, :])
