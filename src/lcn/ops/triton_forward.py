"""Forward kernels: score and pool a work item, join the pieces of a tile, sum weights by code.

Letters as in `triton_blocks`; W work items, B columns of the widest of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lcn.ops.triton_blocks import (
    MEAN,
    RECENCY_BUCKETS,
    SOFTMAX,
    bucket_of,
    columns_of,
    is_finite,
    look_up,
    read_rows,
    read_table,
    sum_rows,
    times_rows,
    weigh,
)


@triton.jit
def score_and_pool(
    rows,
    ask,
    work_W4,
    score_HS,
    part_pool,
    part_stat,
    first_work,
    total,
    codes,
    columns,
    heads: tl.constexpr,
    width: tl.constexpr,
    FIELDS: tl.constexpr,
    RECENT: tl.constexpr,
    LISTED: tl.constexpr,
    NORM: tl.constexpr,
    POOL: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write a work item's scores and, with POOL, its part of the pooled vectors.

    Softmax is taken in one pass: sums are relative to the highest score so far and shrink when a
    block brings a higher one. part_pool is [W, B, D], part_stat [W, B, 2] (top score; sum of the
    weights relative to it, or number of rows).
    """
    w = tl.program_id(0) + first_work
    work = work_W4 + 4 * w
    q_Q, live_Q, c_Q, h_Q, start_Q, stop_Q = columns_of(ask, work, heads, Q)
    query_QD = read_table(ask.query_QD, q_Q, live_Q, width, D)
    flat_Q = tl.load(ask.flat_C + c_Q, mask=live_Q, other=0) + h_Q.to(tl.int64) * total - start_Q
    top_Q = tl.full([Q], -float("inf"), tl.float32)
    sum_Q = tl.zeros([Q], tl.float32)
    pool_QD = tl.zeros([Q, D], tl.float32)
    end = tl.load(work + 3)
    for first in range(tl.load(work + 2), end, R):
        place_R = first + tl.arange(0, R)
        row_R, _, real_R, x_RD = read_rows(rows, place_R, end, width, D, LISTED)
        own_QR = live_Q[:, None] & (place_R[None, :] >= start_Q[:, None])
        own_QR = own_QR & (place_R[None, :] < tl.minimum(stop_Q, end)[:, None])
        real_QR = own_QR & real_R[None, :]
        score_QR = times_rows(query_QD, x_RD, MATRIX, PRECISION)
        if FIELDS > 0 or RECENT:
            score_QR += look_up(
                ask.bias_QV, codes, rows, ask, q_Q, c_Q, row_R, real_R, real_QR, FIELDS, RECENT
            )
        score_QR = tl.where(real_QR, score_QR, -float("inf"))
        tl.store(score_HS + flat_Q[:, None] + place_R[None, :], score_QR, mask=own_QR)
        if POOL:
            finite_QR = is_finite(score_QR)
            if NORM == SOFTMAX:
                highest_Q = tl.max(tl.where(finite_QR, score_QR, -float("inf")), 1)
                new_Q = tl.maximum(top_Q, highest_Q)
                base_Q = tl.where(new_Q == -float("inf"), 0.0, new_Q)
                weight_QR = weigh(score_QR, base_Q[:, None], 1.0, NORM)
                shrink_Q = tl.exp(top_Q - base_Q)
                sum_Q = sum_Q * shrink_Q + tl.sum(weight_QR, 1)
                pool_QD = pool_QD * shrink_Q[:, None]
                top_Q = new_Q
            else:
                weight_QR = weigh(score_QR, 0.0, 1.0, NORM)
                sum_Q += tl.sum(finite_QR.to(tl.float32), 1)
            pool_QD += sum_rows(weight_QR, x_RD, MATRIX, PRECISION)
    if POOL:
        part_Q = w.to(tl.int64) * columns + tl.arange(0, Q)
        d_D = tl.arange(0, D)
        mask = live_Q[:, None] & (d_D < width)[None, :]
        tl.store(part_pool + part_Q[:, None] * width + d_D[None, :], pool_QD, mask=mask)
        tl.store(part_stat + 2 * part_Q, top_Q, mask=live_Q)
        tl.store(part_stat + 2 * part_Q + 1, sum_Q, mask=live_Q)


@triton.jit
def join_parts(
    part_pool,
    part_stat,
    part_C3,
    pool_QD,
    stat_Q2,
    columns,
    heads: tl.constexpr,
    width: tl.constexpr,
    NORM: tl.constexpr,
    STAT: tl.constexpr,
    D: tl.constexpr,
):
    """Join one column's parts, in order: its pooled vector and, with STAT, its top and factor.

    A weight is weigh(score, top, factor): all that the backward needs to find it again. Without
    STAT this is a plain sum of parts.
    """
    q = tl.program_id(0)
    part = part_C3 + 3 * (q // heads)
    j = q - tl.load(part + 2) * heads
    d_D = tl.arange(0, D)
    mask = d_D < width
    top = -float("inf")
    total = 0.0
    pool_D = tl.zeros([D], tl.float32)
    for w in range(tl.load(part), tl.load(part + 1)):
        at = tl.cast(w, tl.int64) * columns + j
        add_D = tl.load(part_pool + at * width + d_D, mask=mask, other=0.0)
        if STAT:
            add = tl.load(part_stat + 2 * at + 1)
            if NORM == SOFTMAX:
                other = tl.load(part_stat + 2 * at)
                new = tl.maximum(top, other)
                base = tl.where(new == -float("inf"), 0.0, new)
                shrink, grow = tl.exp(top - base), tl.exp(other - base)
                pool_D, add_D = pool_D * shrink, add_D * grow
                total, add = total * shrink, add * grow
                top = new
            total += add
        pool_D += add_D
    if STAT:
        factor = 1.0
        if NORM == SOFTMAX:
            factor = 1.0 / tl.maximum(total, 1e-30)
            tl.store(stat_Q2 + 2 * q, tl.where(top == -float("inf"), 0.0, top))
        elif NORM == MEAN:
            factor = 1.0 / tl.maximum(total, 1.0)
        pool_D *= factor
        tl.store(stat_Q2 + 2 * q + 1, factor)
    tl.store(pool_QD + q.to(tl.int64) * width + d_D, pool_D, mask=mask)


@triton.jit
def sum_by_code(
    rows,
    ask,
    value_HS,
    stat_Q2,
    out_QV,
    total,
    codes,
    heads: tl.constexpr,
    FIELDS: tl.constexpr,
    RECENT: tl.constexpr,
    LISTED: tl.constexpr,
    NORM: tl.constexpr,
    WEIGH: tl.constexpr,
    V: tl.constexpr,
    R: tl.constexpr,
):
    """Sum a column's values (WEIGH: the weights of its scores) over the rows with each code.

    One program owns V codes of one column and compares every row's codes with them: no atomics,
    so the sums come out the same each time.
    """
    q = tl.program_id(0)
    c, h = q // heads, q % heads
    v_V = tl.program_id(1) * V + tl.arange(0, V)
    start = tl.load(ask.span_C2 + 2 * c)
    count = tl.load(ask.span_C2 + 2 * c + 1) - start
    value = value_HS + tl.load(ask.flat_C + c) + h.to(tl.int64) * total
    first_bucket = codes - RECENCY_BUCKETS
    total_V = tl.zeros([V], tl.float32)
    for first in range(0, count, R):
        r_R = first + tl.arange(0, R)
        real_R = r_R < count
        row_R = (start + r_R).to(tl.int64)
        if LISTED:
            row_R = tl.load(rows.listed_L + row_R, mask=real_R, other=-1).to(tl.int64)
        value_R = tl.load(value + r_R, mask=real_R, other=0.0)
        real_R = real_R & (row_R >= 0)
        if WEIGH:
            value_R = weigh(value_R, tl.load(stat_Q2 + 2 * q), tl.load(stat_Q2 + 2 * q + 1), NORM)
        value_R = tl.where(real_R, value_R, 0.0)
        for g in tl.static_range(FIELDS):
            code_R = tl.load(rows.code_TG + row_R * FIELDS + g, mask=real_R, other=0)
            total_V += _of_code(value_R, code_R, v_V)
        if RECENT:
            time_R = tl.load(rows.time_T + row_R, mask=real_R, other=0)
            bucket_R = bucket_of(tl.load(ask.time_C + c) - time_R)
            total_V += _of_code(value_R, first_bucket + bucket_R, v_V)
    tl.store(out_QV + q.to(tl.int64) * codes + v_V, total_V, mask=v_V < codes)


@triton.jit
def _of_code(value_R, code_R, v_V):
    return tl.sum(tl.where(code_R[None, :] == v_V[:, None], value_R[None, :], 0.0), 1)
