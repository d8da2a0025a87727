"""What the Triton kernels share: how a block of history rows is read, scored and weighed.

A *work item* is a run of candidates of one user whose spans overlap, and a piece of the union of
those spans. One program walks it in blocks of rows: a block's vectors are loaded once and serve
every column. A *column* is one (candidate, head) pair; column q of the batch is candidate
q // heads, head q % heads. A *place* is a row's position: on the T axis, or in the list of rows
where rows are listed.

Q columns of a work item, R rows of a block, D vector width, V context codes, S total span length;
the sizes Q, R and D of a block are powers of two.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lcn.ops import types

SOFTMAX, MEAN = tl.constexpr(0), tl.constexpr(1)
"""What NORM means; anything else is the score itself."""
RECENCY_BUCKETS = tl.constexpr(types.RECENCY_BUCKETS)


class RowArgs(NamedTuple):
    """`HistoryRows` as kernels read them."""

    vector_ID: Tensor
    item_T: Tensor
    code_TG: Tensor
    time_T: Tensor
    listed_L: Tensor
    """Row at each place, -1 in empty slots; unused where spans name rows directly."""


class AskArgs(NamedTuple):
    """`Scoring` and spans as kernels read them."""

    query_QD: Tensor
    bias_QV: Tensor
    time_C: Tensor
    span_C2: Tensor
    """First and one-past-last place."""
    flat_C: Tensor
    """Where each candidate's scores start on the S axis."""


@triton.jit
def columns_of(ask, work, heads: tl.constexpr, Q: tl.constexpr):
    """Columns of a work item: numbers, which are real, candidates, heads, spans."""
    first = tl.load(work)
    count = (tl.load(work + 1) - first) * heads
    j_Q = tl.arange(0, Q)
    live_Q = j_Q < count
    c_Q = first + j_Q // heads
    start_Q = tl.load(ask.span_C2 + 2 * c_Q, mask=live_Q, other=0)
    stop_Q = tl.load(ask.span_C2 + 2 * c_Q + 1, mask=live_Q, other=0)
    # Columns that are not real read the first candidate, so that loads need no mask.
    c_Q = tl.where(live_Q, c_Q, first)
    return (first * heads + j_Q).to(tl.int64), live_Q, c_Q, j_Q % heads, start_Q, stop_Q


@triton.jit
def read_table(table_QD, q_Q, live_Q, width: tl.constexpr, D: tl.constexpr):
    """[Q, D] rows of a table by column, zero beyond its width and for columns that are not real."""
    d_D = tl.arange(0, D)
    mask = live_Q[:, None] & (d_D < width)[None, :]
    return tl.load(table_QD + q_Q[:, None] * width + d_D[None, :], mask=mask, other=0.0)


@triton.jit
def read_rows(rows, place_R, end, width: tl.constexpr, D: tl.constexpr, LISTED: tl.constexpr):
    """A block of rows: row numbers, items, which are real, and vectors [R, D] in float32."""
    real_R = place_R < end
    row_R = place_R.to(tl.int64)
    if LISTED:
        row_R = tl.load(rows.listed_L + place_R, mask=real_R, other=-1).to(tl.int64)
        real_R = row_R >= 0
    item_R = tl.load(rows.item_T + row_R, mask=real_R, other=0).to(tl.int64)
    d_D = tl.arange(0, D)
    mask = real_R[:, None] & (d_D < width)[None, :]
    at = rows.vector_ID + item_R[:, None] * width + d_D[None, :]
    return row_R, item_R, real_R, tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def bucket_of(elapsed_ms):
    """floor(log2(1 + minutes)), at most the last bucket, without rounding.

    A float32 holds integers of 24 bits: larger numbers of minutes lose their lowest byte first,
    which does not move their highest bit.
    """
    minutes = tl.minimum(tl.maximum(elapsed_ms, 0) // 60000, 1 << 27)
    count = (minutes + 1).to(tl.int32)
    large = count >= (1 << 24)
    exact = tl.where(large, count >> 8, count).to(tl.float32)
    bucket = (exact.to(tl.int32, bitcast=True) >> 23) - 127 + tl.where(large, 8, 0)
    return tl.minimum(bucket, RECENCY_BUCKETS - 1)


@triton.jit
def look_up(
    table_QV,
    codes,
    rows,
    ask,
    q_Q,
    c_Q,
    row_R,
    real_R,
    real_QR,
    FIELDS: tl.constexpr,
    RECENT: tl.constexpr,
):
    """[Q, R] sum of a column's numbers for the codes that each row switches on."""
    total_QR = tl.zeros(real_QR.shape, tl.float32)
    for g in tl.static_range(FIELDS):
        code_R = tl.load(rows.code_TG + row_R * FIELDS + g, mask=real_R, other=0)
        at = table_QV + q_Q[:, None] * codes + code_R[None, :]
        total_QR += tl.load(at, mask=real_QR, other=0.0)
    if RECENT:
        now_Q = tl.load(ask.time_C + c_Q)
        time_R = tl.load(rows.time_T + row_R, mask=real_R, other=0)
        bucket_QR = bucket_of(now_Q[:, None] - time_R[None, :])
        at = table_QV + q_Q[:, None] * codes + (codes - RECENCY_BUCKETS + bucket_QR)
        total_QR += tl.load(at, mask=real_QR, other=0.0)
    return total_QR


@triton.jit
def is_finite(x):
    """Neither infinite nor NaN."""
    return (x > -float("inf")) & (x < float("inf"))


@triton.jit
def weigh(score, top, scale, NORM: tl.constexpr):
    """Scores to weights, given the column's top score and factor; what is not finite weighs 0."""
    finite = is_finite(score)
    if NORM == SOFTMAX:
        return tl.where(finite, tl.exp(tl.where(finite, score, top) - top) * scale, 0.0)
    return tl.where(finite, score, 0.0) * scale


@triton.jit
def times_rows(a_QD, x_RD, MATRIX: tl.constexpr, PRECISION: tl.constexpr):
    """[Q, R] inner products; few columns do without the matrix unit, which would compute 16."""
    if MATRIX:
        return tl.dot(a_QD, tl.trans(x_RD), input_precision=PRECISION)
    return tl.sum(a_QD[:, None, :] * x_RD[None, :, :], 2)


@triton.jit
def sum_rows(w_QR, x_RD, MATRIX: tl.constexpr, PRECISION: tl.constexpr):
    """[Q, D] weighted sums of rows."""
    if MATRIX:
        return tl.dot(w_QR, x_RD, input_precision=PRECISION)
    return tl.sum(w_QR[:, :, None] * x_RD[None, :, :], 1)


@triton.jit
def sum_columns(w_QR, a_QD, MATRIX: tl.constexpr, PRECISION: tl.constexpr):
    """[R, D] weighted sums of columns."""
    if MATRIX:
        return tl.dot(tl.trans(w_QR), a_QD, input_precision=PRECISION)
    return tl.sum(w_QR[:, :, None] * a_QD[:, None, :], 0)
