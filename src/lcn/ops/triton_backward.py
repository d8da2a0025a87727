"""Backward kernel: gradients of a work item's vectors, queries and scores.

With weights w and loss slopes p (of the pooled vector) and b (of the weight per code),

    dw = p · x + Σ_g b[code_g]
    ds = w (dw - Σ w dw)     softmax;   dw / rows     mean;   dw     raw
    dx = Σ_q w p + ds query,   dquery = Σ_r ds x,   dbias[v] = Σ_r ds [row r has code v]

Weights come from the stored scores; Σ w dw is p · pooled + b · weight per code, known beforehand.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lcn.ops.triton_blocks import (
    SOFTMAX,
    columns_of,
    is_finite,
    look_up,
    read_rows,
    read_table,
    sum_columns,
    sum_rows,
    times_rows,
    weigh,
)


@triton.jit
def slopes(
    rows,
    ask,
    work_W4,
    score_HS,
    stat_Q2,
    slope_QD,
    slope_QV,
    mean_Q,
    part_query,
    slope_HS,
    grad_ID,
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
    TO_ROWS: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    MATRIX: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to `grad_ID` by atomics (TO_ROWS), write a part of dquery and, with codes, ds."""
    w = tl.program_id(0) + first_work
    work = work_W4 + 4 * w
    q_Q, live_Q, c_Q, h_Q, start_Q, stop_Q = columns_of(ask, work, heads, Q)
    query_QD = read_table(ask.query_QD, q_Q, live_Q, width, D)
    pooled_QD = read_table(slope_QD, q_Q, live_Q, width, D)
    top_Q = tl.load(stat_Q2 + 2 * q_Q, mask=live_Q, other=0.0)
    factor_Q = tl.load(stat_Q2 + 2 * q_Q + 1, mask=live_Q, other=0.0)
    mean_Q1 = tl.load(mean_Q + q_Q, mask=live_Q, other=0.0)[:, None]
    flat_Q = tl.load(ask.flat_C + c_Q, mask=live_Q, other=0) + h_Q.to(tl.int64) * total - start_Q
    d_D = tl.arange(0, D)
    grad_QD = tl.zeros([Q, D], tl.float32)
    end = tl.load(work + 3)
    for first in range(tl.load(work + 2), end, R):
        place_R = first + tl.arange(0, R)
        row_R, item_R, real_R, x_RD = read_rows(rows, place_R, end, width, D, LISTED)
        own_QR = live_Q[:, None] & (place_R[None, :] >= start_Q[:, None])
        own_QR = own_QR & (place_R[None, :] < tl.minimum(stop_Q, end)[:, None])
        real_QR = own_QR & real_R[None, :]
        at_QR = flat_Q[:, None] + place_R[None, :]
        score_QR = tl.load(score_HS + at_QR, mask=real_QR, other=-float("inf"))
        weight_QR = weigh(score_QR, top_Q[:, None], factor_Q[:, None], NORM)
        slope_QR = times_rows(pooled_QD, x_RD, MATRIX, PRECISION)
        if FIELDS > 0 or RECENT:
            slope_QR += look_up(
                slope_QV, codes, rows, ask, q_Q, c_Q, row_R, real_R, real_QR, FIELDS, RECENT
            )
        if NORM == SOFTMAX:
            slope_QR = weight_QR * (slope_QR - mean_Q1)
        else:
            slope_QR = slope_QR * factor_Q[:, None]
        slope_QR = tl.where(is_finite(score_QR), slope_QR, 0.0)
        if FIELDS > 0 or RECENT:
            tl.store(slope_HS + at_QR, slope_QR, mask=own_QR)
        grad_QD += sum_rows(slope_QR, x_RD, MATRIX, PRECISION)
        if TO_ROWS:
            grad_RD = sum_columns(weight_QR, pooled_QD, MATRIX, PRECISION)
            grad_RD += sum_columns(slope_QR, query_QD, MATRIX, PRECISION)
            mask = real_R[:, None] & (d_D < width)[None, :]
            at_RD = grad_ID + item_R[:, None] * width + d_D[None, :]
            tl.atomic_add(at_RD, grad_RD, mask=mask, sem="relaxed")
    part_Q = w.to(tl.int64) * columns + tl.arange(0, Q)
    mask = live_Q[:, None] & (d_D < width)[None, :]
    tl.store(part_query + part_Q[:, None] * width + d_D[None, :], grad_QD, mask=mask)
