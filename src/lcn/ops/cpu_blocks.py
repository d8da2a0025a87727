"""Blocks of history rows and their scores: what the CPU kernels of every op share.

A *tile* is a run of candidates of one user whose spans overlap, with the union of their spans. It
is walked in blocks of ROWS history rows: a block's vectors are read once, into a padded scratch
[R, D'] that stays in the first-level cache, and serve every column of the tile. A *column* is one
(candidate, head) pair.

Two layouts, by the number of columns: *wide* scores are [R, Q'] (Q' padded to whole lanes, vectors
run over columns; a context code adds one row of the transposed bias), *narrow* scores are [Q, R]
(vectors run over rows or D; no padding, so one column costs one column).

R rows of a block, Q columns, Q' and D' padded counts, L listed rows, N tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lcn.ops.lane_steps import recency_bucket
from lcn.ops.lanes import (
    BROAD,
    LANE,
    ROWS_8X2,
    WIDTH,
    add_lane,
    copy_broad,
    dot_8,
    inlined,
    kernel,
    leaf,
    prefetch,
    tile_8x1,
    tile_8x2,
)
from lcn.ops.types import RECENCY_BUCKETS

ROWS = 64
"""History rows of a block: 16 KB at D = 64."""
AHEAD = 8
"""Rows between asking for a vector and reading it."""
MAX_COLUMNS = 32
"""Columns of a tile; more candidates of a user make another tile."""
WIDE_FROM = 5
"""Columns from which the wide layout pays for its padding."""
SOFTMAX, MEAN, RAW = 0, 1, 2


class Task(NamedTuple):
    """What all kernels read: `HistoryRows` and `Scoring` as plain arrays."""

    vector_ID: np.ndarray
    item_T: np.ndarray
    """int32, like codes and listed rows."""
    code_TG: np.ndarray
    time_T: np.ndarray
    row_L: np.ndarray
    """Listed rows, candidates one after the other; unused when spans name rows directly."""
    span_C2: np.ndarray
    """First and one-past-last position: in `row_L` if `listed`, on the T axis otherwise."""
    query_QD: np.ndarray
    bias_QV: np.ndarray
    time_C: np.ndarray
    """Empty when there is no recency."""
    heads: int
    norm: int
    listed: bool


class Block(NamedTuple):
    """Scratch for one block of rows."""

    vector_RD: np.ndarray
    """[ROWS, D'], zero beyond D and in the rows that fill up the last eight."""
    row_R: np.ndarray
    time_R: np.ndarray
    bucket_CR: np.ndarray
    """Bias column of each row's recency, by candidate of the tile."""
    steady_C: np.ndarray
    """Whether all rows of the block share a candidate's bucket."""


@leaf
def padded(count, step):
    """Round up to a multiple of `step`."""
    return (count + step - 1) // step * step


@kernel
def make_block(task, candidates):
    """Allocate scratch for blocks of a tile."""
    recent = candidates if len(task.time_C) else 0
    return Block(
        np.zeros((ROWS, padded(task.vector_ID.shape[1], WIDTH)), np.float32),
        np.zeros(ROWS, np.int32),
        np.zeros(ROWS, np.int64),
        np.zeros((recent, ROWS), np.int32),
        np.zeros(recent, np.bool_),
    )


@inlined
def for_tile(block, candidates):
    """The same scratch for a tile of fewer candidates."""
    return Block(
        block.vector_RD,
        block.row_R,
        block.time_R,
        block.bucket_CR[:candidates],
        block.steady_C[:candidates],
    )


@leaf
def read_block(task, block, first, count, end):
    """Copy the vectors of `count` rows from `first` on; those to come are asked for early.

    Returns:
        The number of rows with those that fill up the last lane, which are zero.
    """
    width, deep = task.vector_ID.shape[1], block.vector_RD.shape[1]
    base, into = task.vector_ID.ctypes.data, block.vector_RD.ctypes.data
    whole, line = width // BROAD * BROAD, 64
    for r in range(count):
        soon = min(first + r + AHEAD, end - 1)
        start = base + 4 * width * task.item_T[task.row_L[soon] if task.listed else soon]
        for byte in range(0, 4 * width, line):
            prefetch(start + byte)
        t = task.row_L[first + r] if task.listed else first + r
        block.row_R[r] = t
        item = task.item_T[t]
        start = base + 4 * width * item
        for d in range(0, whole, BROAD):
            copy_broad(into + 4 * d, start + 4 * d)
        for d in range(whole, width):
            block.vector_RD[r, d] = task.vector_ID[item, d]
        into += 4 * deep
    high = padded(count, LANE)
    for r in range(count, high):
        for d in range(width):
            block.vector_RD[r, d] = 0.0
    return high


@leaf
def find_buckets(task, block, count, c0):
    """Fill in each row's recency column for each candidate of the tile."""
    if len(block.steady_C) == 0:
        return
    base = task.bias_QV.shape[1] - RECENCY_BUCKETS
    for r in range(count):
        block.time_R[r] = task.time_T[block.row_R[r]]
    for c in range(len(block.steady_C)):
        now = task.time_C[c0 + c]
        for r in range(count):
            bucket = recency_bucket(now - block.time_R[r], RECENCY_BUCKETS - 1)
            block.bucket_CR[c, r] = np.int32(base + bucket)
        low = high = block.bucket_CR[c, 0]
        for r in range(count):
            low, high = min(low, block.bucket_CR[c, r]), max(high, block.bucket_CR[c, r])
        block.steady_C[c] = low == high


@leaf
def transpose_into(table_QX, q0, columns, out_XQ, skip):
    """Copy `columns` rows of a table to as many columns of a matrix, from column `skip` on."""
    for q in range(columns):
        for x in range(table_QX.shape[1]):
            out_XQ[x, skip + q] = table_QX[q0 + q, x]


@leaf
def score_wide(block, high, query_DQ, score_RQ):
    """Write score[r, q] = <vector[r], query[:, q]>."""
    wide, deep = query_DQ.shape[1], query_DQ.shape[0]
    vectors, queries = block.vector_RD.ctypes.data, query_DQ.ctypes.data
    even = wide // WIDTH * WIDTH
    for r in range(0, high, ROWS_8X2):
        x, score = vectors + 4 * deep * r, score_RQ.ctypes.data + 4 * wide * r
        for q in range(0, even, WIDTH):
            tile_8x2(x, 4 * deep, 4, queries + 4 * q, 4 * wide, score + 4 * q, 4 * wide, deep)
    if even < wide:
        for r in range(0, high, 8):
            x, score = vectors + 4 * deep * r, score_RQ.ctypes.data + 4 * (wide * r + even)
            tile_8x1(x, 4 * deep, 4, queries + 4 * even, 4 * wide, score, 4 * wide, deep)


@leaf
def add_bias_wide(task, block, count, bias_VQ, score_RQ, halves):
    """Add each row's biases to its scores; `halves` sets of columns have the same candidates."""
    wide = score_RQ.shape[1]
    half = wide // halves
    for r in range(count):
        score = score_RQ.ctypes.data + 4 * wide * r
        for g in range(task.code_TG.shape[1]):
            bias = bias_VQ.ctypes.data + 4 * wide * task.code_TG[block.row_R[r], g]
            for q in range(0, wide, LANE):
                add_lane(score + 4 * q, bias + 4 * q)
    for c in range(len(block.steady_C)):
        for part in range(halves):
            for q in range(part * half + c * task.heads, part * half + (c + 1) * task.heads):
                if block.steady_C[c]:
                    bias = bias_VQ[block.bucket_CR[c, 0], q]
                    for r in range(count):
                        score_RQ[r, q] += bias
                else:
                    for r in range(count):
                        score_RQ[r, q] += bias_VQ[block.bucket_CR[c, r], q]


@leaf
def mask_wide(task, first, high, c0, c1, score_RQ):
    """Give rows outside a candidate's span the score -inf."""
    for c in range(c0, c1):
        start = min(max(task.span_C2[c, 0] - first, 0), high)
        stop = min(max(task.span_C2[c, 1] - first, start), high)
        for q in range((c - c0) * task.heads, (c - c0 + 1) * task.heads):
            for r in range(start):
                score_RQ[r, q] = -np.inf
            for r in range(stop, high):
                score_RQ[r, q] = -np.inf


@leaf
def gather_codes_wide(task, block, count, weight_RQ, skip, sum_Q, total_VQ):
    """Add each row's weights (columns from `skip` on) to the totals of its codes.

    `sum_Q` holds the block's sums, all that a steady bucket needs.
    """
    wide, columns = weight_RQ.shape[1], total_VQ.shape[1]
    for r in range(count):
        weight = weight_RQ.ctypes.data + 4 * (wide * r + skip)
        for g in range(task.code_TG.shape[1]):
            total = total_VQ.ctypes.data + 4 * columns * task.code_TG[block.row_R[r], g]
            for q in range(0, columns, LANE):
                add_lane(total + 4 * q, weight + 4 * q)
    for c in range(len(block.steady_C)):
        for q in range(c * task.heads, (c + 1) * task.heads):
            if block.steady_C[c]:
                total_VQ[block.bucket_CR[c, 0], q] += sum_Q[q]
            else:
                for r in range(count):
                    total_VQ[block.bucket_CR[c, r], q] += weight_RQ[r, skip + q]


@leaf
def score_narrow(block, high, query_QD, score_QR):
    """Write score[q, r] = <vector[r], query[q]>."""
    deep = query_QD.shape[1]
    for q in range(query_QD.shape[0]):
        query = query_QD.ctypes.data + 4 * deep * q
        for r in range(0, high, 8):
            dot_8(
                block.vector_RD.ctypes.data + 4 * deep * r, 4 * deep,
                query,
                score_QR.ctypes.data + 4 * (ROWS * q + r),
                deep,
            )  # fmt: skip


@leaf
def add_bias_narrow(task, block, count, c, bias_V, score_R):
    """Add each row's biases to one column's scores; `c` is the candidate's place in the tile."""
    for g in range(task.code_TG.shape[1]):
        for r in range(count):
            score_R[r] += bias_V[task.code_TG[block.row_R[r], g]]
    if len(block.steady_C):
        for r in range(count):
            score_R[r] += bias_V[block.bucket_CR[c, r]]


@leaf
def gather_codes_narrow(task, block, count, c, weight_R, sum_block, total_V):
    """Add one column's weights to the totals of the rows' codes."""
    for g in range(task.code_TG.shape[1]):
        for r in range(count):
            total_V[task.code_TG[block.row_R[r], g]] += weight_R[r]
    if len(block.steady_C):
        if block.steady_C[c]:
            total_V[block.bucket_CR[c, 0]] += sum_block
        else:
            for r in range(count):
                total_V[block.bucket_CR[c, r]] += weight_R[r]


@leaf
def mask_narrow(task, first, high, c, score_R):
    """Give rows outside the candidate's span the score -inf."""
    start = min(max(task.span_C2[c, 0] - first, 0), high)
    stop = min(max(task.span_C2[c, 1] - first, start), high)
    for r in range(start):
        score_R[r] = -np.inf
    for r in range(stop, high):
        score_R[r] = -np.inf
