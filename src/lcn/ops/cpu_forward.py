"""Forward kernels: score the rows of a tile, weigh them, pool them, keep the best.

Softmax is taken in one pass: totals are relative to the highest score so far and shrink when a
block brings a higher one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lcn.ops.cpu_blocks import (
    MEAN,
    ROWS,
    SOFTMAX,
    WIDE_FROM,
    Block,
    add_bias_narrow,
    add_bias_wide,
    find_buckets,
    for_tile,
    gather_codes_narrow,
    gather_codes_wide,
    make_block,
    mask_narrow,
    mask_wide,
    padded,
    read_block,
    score_narrow,
    score_wide,
)
from lcn.ops.cpu_topk import make_sorter, select_best
from lcn.ops.lane_steps import exp_lanes, live_lanes, max_lanes
from lcn.ops.lanes import (
    LANE,
    ROWS_8X4,
    WIDTH,
    add_lane,
    add_row_1x8,
    add_tile_1x2,
    add_tile_4x2,
    add_tile_8x4,
    kernel,
    leaf,
)


class Pooled(NamedTuple):
    """What the forward writes."""

    vector_QD: np.ndarray
    weight_QV: np.ndarray
    stat_Q2: np.ndarray
    """[Q, 2] the score that counts as 0 and the factor of the weights: all that the backward
    needs to find the weights again."""
    kept_CK: np.ndarray


class Tally(NamedTuple):
    """Running totals of a tile's columns, [Q'] wide or [Q, LANE] narrow."""

    top: np.ndarray
    """Highest score so far."""
    before: np.ndarray
    """What it was before the current block."""
    total: np.ndarray
    """Sum of the weights relative to it."""
    live: np.ndarray
    """Rows so far."""
    block: np.ndarray
    """Sum of the weights of the current block."""


class Scratch(NamedTuple):
    """Memory of one thread for one tile after the other; flat arrays take the tile's shape."""

    block: Block
    query: np.ndarray
    bias: np.ndarray
    total: np.ndarray
    pool: np.ndarray
    score: np.ndarray
    tally: Tally
    kept: np.ndarray
    """Scores that the best are selected from."""


@kernel
def make_scratch(task, tile_N4, n0, n1, keeping):
    """Allocate for tiles n0 to n1 - 1; `keeping` columns per candidate are ranked."""
    candidates, longest = 1, 1
    for n in range(n0, n1):
        candidates = max(candidates, tile_N4[n, 1] - tile_N4[n, 0])
        longest = max(longest, tile_N4[n, 3] - tile_N4[n, 2])
    wide = max(padded(candidates * task.heads, LANE), LANE * WIDE_FROM)
    block = make_block(task, candidates)
    deep, codes = block.vector_RD.shape[1], task.bias_QV.shape[1]
    tally = Tally(
        np.empty(wide, np.float32),
        np.empty(wide, np.float32),
        np.empty(wide, np.float32),
        np.empty(wide, np.float32),
        np.empty(wide, np.float32),
    )
    return Scratch(
        block,
        np.empty(deep * wide, np.float32),
        np.empty(codes * wide, np.float32),
        np.empty(codes * wide, np.float32),
        np.empty(deep * wide, np.float32),
        np.empty(ROWS * wide, np.float32),
        tally,
        np.empty(longest * candidates * keeping, np.float32),
    )


@leaf
def _clear(tally, count):
    for q in range(count):
        tally.top[q] = -np.inf
        tally.total[q] = tally.live[q] = tally.block[q] = np.float32(0.0)


@leaf
def _weigh_lanes(norm, score, stride, groups, tally, q):
    """Turn eight columns of scores into unscaled weights in place."""
    top, total = tally.top.ctypes.data + 4 * q, tally.block.ctypes.data + 4 * q
    if norm == SOFTMAX:
        exp_lanes(score, stride, groups, top, total)
    else:
        live_lanes(score, stride, groups, tally.live.ctypes.data + 4 * q, total)


@leaf
def _weigh_wide(norm, high, score_RQ, tally, total_VQ, pool_QD):
    """Turn scores into unscaled weights in place; shrink older totals under a new top score."""
    wide = score_RQ.shape[1]
    for q in range(0, wide, LANE):
        score = score_RQ.ctypes.data + 4 * q
        if norm == SOFTMAX:
            for j in range(q, q + LANE):
                tally.before[j] = tally.top[j]
            max_lanes(score, 4 * wide, high, tally.top.ctypes.data + 4 * q)
            for j in range(q, q + LANE):
                if tally.top[j] > tally.before[j] > -np.inf:
                    shrink = np.exp(tally.before[j] - tally.top[j])
                    tally.total[j] *= shrink
                    for d in range(pool_QD.shape[1]):
                        pool_QD[j, d] *= shrink
                    for v in range(total_VQ.shape[0]):
                        total_VQ[v, j] *= shrink
        _weigh_lanes(norm, score, 4 * wide, high, tally, q)
        add_lane(tally.total.ctypes.data + 4 * q, tally.block.ctypes.data + 4 * q)


@leaf
def pool_wide(weight_RQ, skip, block, high, pool_QD):
    """Add sum_r weight[r, skip + q] vector[r] to pool[q]."""
    wide, deep = weight_RQ.shape[1], pool_QD.shape[1]
    weights, vectors = weight_RQ.ctypes.data + 4 * skip, block.vector_RD.ctypes.data
    even = deep // (2 * WIDTH) * (2 * WIDTH)
    for q in range(0, pool_QD.shape[0], ROWS_8X4):
        w, pool = weights + 4 * q, pool_QD.ctypes.data + 4 * q * deep
        for d in range(0, even, 2 * WIDTH):
            add_tile_8x4(w, 4, 4 * wide, vectors + 4 * d, 4 * deep, pool + 4 * d, 4 * deep, high)
    if even < deep:
        for q in range(0, pool_QD.shape[0], 4):
            w, pool = weights + 4 * q, pool_QD.ctypes.data + 4 * (q * deep + even)
            add_tile_4x2(w, 4, 4 * wide, vectors + 4 * even, 4 * deep, pool, 4 * deep, high)


@leaf
def pool_narrow(weight_R, block, high, pool_D):
    """Add sum_r weight[r] vector[r] to pool."""
    deep, d = pool_D.shape[0], 0
    weights, vectors, pool = weight_R.ctypes.data, block.vector_RD.ctypes.data, pool_D.ctypes.data
    while d + 4 * WIDTH <= deep:
        add_row_1x8(weights, 4, 4, vectors + 4 * d, 4 * deep, pool + 4 * d, 4 * deep, high)
        d += 4 * WIDTH
    while d < deep:
        add_tile_1x2(weights, 4, 4, vectors + 4 * d, 4 * deep, pool + 4 * d, 4 * deep, high)
        d += WIDTH


@leaf
def _scale(norm, total, live):
    if norm == SOFTMAX:
        return np.float32(1.0) / max(total, np.float32(1e-30))
    if norm == MEAN:
        return np.float32(1.0) / max(live, np.float32(1.0))
    return np.float32(1.0)


@leaf
def _write_column(out, q, top, scale, pool_D):
    out.stat_Q2[q, 0] = top if top > -np.inf else np.float32(0.0)
    out.stat_Q2[q, 1] = scale
    for d in range(out.vector_QD.shape[1]):
        out.vector_QD[q, d] = pool_D[d] * scale


@leaf
def rearrange(table_QX, q0, columns, wide, flat):
    """Columns of queries or biases as a matrix [X, Q'], zero where they are padded."""
    width = table_QX.shape[1]
    out_XQ = flat[: width * wide].reshape((width, wide))
    for x in range(width):
        for q in range(columns):
            out_XQ[x, q] = table_QX[q0 + q, x]
        for q in range(columns, wide):
            out_XQ[x, q] = np.float32(0.0)


@leaf
def query_wide(task, scratch, q0, columns, wide):
    """The tile's queries [D', Q']."""
    deep, width = scratch.block.vector_RD.shape[1], task.query_QD.shape[1]
    rearrange(task.query_QD, q0, columns, wide, scratch.query)
    for n in range(width * wide, deep * wide):
        scratch.query[n] = np.float32(0.0)


@leaf
def _forward_wide(task, out, tile, scratch, keeping):
    c0, c1, lo, hi = tile
    q0, columns = c0 * task.heads, (c1 - c0) * task.heads
    wide, codes = padded(columns, LANE), task.bias_QV.shape[1]
    block, tally = for_tile(scratch.block, c1 - c0), scratch.tally
    deep = block.vector_RD.shape[1]
    query_wide(task, scratch, q0, columns, wide)
    query_DQ = scratch.query[: deep * wide].reshape((deep, wide))
    rearrange(task.bias_QV, q0, columns, wide, scratch.bias)
    bias_VQ = scratch.bias[: codes * wide].reshape((codes, wide))
    total_VQ = scratch.total[: codes * wide].reshape((codes, wide))
    pool_QD = scratch.pool[: wide * deep].reshape((wide, deep))
    score_RQ = scratch.score[: ROWS * wide].reshape((ROWS, wide))
    total_VQ[:] = 0.0
    pool_QD[:] = 0.0
    _clear(tally, wide)
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        high = read_block(task, block, first, count, hi)
        score_wide(block, high, query_DQ, score_RQ)
        find_buckets(task, block, count, c0)
        add_bias_wide(task, block, count, bias_VQ, score_RQ, 1)
        mask_wide(task, first, high, c0, c1, score_RQ)
        if keeping:
            keep_wide(score_RQ, count, c1 - c0, task.heads, scratch.kept, hi - lo, first - lo)
        _weigh_wide(task.norm, high, score_RQ, tally, total_VQ, pool_QD)
        gather_codes_wide(task, block, count, score_RQ, 0, tally.block, total_VQ)
        pool_wide(score_RQ, 0, block, high, pool_QD)
    for q in range(columns):
        scale = _scale(task.norm, tally.total[q], tally.live[q])
        _write_column(out, q0 + q, tally.top[q], scale, pool_QD[q])
        for v in range(codes):
            out.weight_QV[q0 + q, v] = total_VQ[v, q] * scale


@leaf
def keep_wide(score_RQ, count, columns, step, kept, length, place):
    """Copy every `step`-th column's scores to a row of length `length`, from `place` on."""
    for n in range(columns):
        for r in range(count):
            kept[n * length + place + r] = score_RQ[r, n * step]


@leaf
def _weigh_narrow(norm, high, score_R, tally, q, total_V, pool_D):
    """`_weigh_wide` for one column, whose eight lanes of a tally are parts of one sum."""
    lanes, score = LANE * q, score_R.ctypes.data
    if norm == SOFTMAX:
        old = tally.top[lanes]
        max_lanes(score, 4 * LANE, high // LANE, tally.top.ctypes.data + 4 * lanes)
        top = old
        for n in range(lanes, lanes + LANE):
            top = max(top, tally.top[n])
        if top > old:
            shrink = np.exp(old - top) if old > -np.inf else np.float32(0.0)
            for n in range(lanes, lanes + LANE):
                tally.top[n] = top
                tally.total[n] *= shrink
            if shrink:
                for d in range(len(pool_D)):
                    pool_D[d] *= shrink
                for v in range(len(total_V)):
                    total_V[v] *= shrink
    _weigh_lanes(norm, score, 4 * LANE, high // LANE, tally, lanes)
    add_lane(tally.total.ctypes.data + 4 * lanes, tally.block.ctypes.data + 4 * lanes)
    return sum_of(tally.block, lanes)


@leaf
def sum_of(lanes_N, start):
    """The sum of eight lanes."""
    total = np.float32(0.0)
    for n in range(start, start + LANE):
        total += lanes_N[n]
    return total


@leaf
def _forward_narrow(task, out, tile, scratch, keeping):
    c0, c1, lo, hi = tile
    q0, columns, width = c0 * task.heads, (c1 - c0) * task.heads, task.query_QD.shape[1]
    block, tally = for_tile(scratch.block, c1 - c0), scratch.tally
    deep = block.vector_RD.shape[1]
    query_QD = scratch.query[: columns * deep].reshape((columns, deep))
    pool_QD = scratch.pool[: columns * deep].reshape((columns, deep))
    score_QR = scratch.score[: columns * ROWS].reshape((columns, ROWS))
    for q in range(columns):
        for d in range(deep):
            pool_QD[q, d] = np.float32(0.0)
            query_QD[q, d] = task.query_QD[q0 + q, d] if d < width else np.float32(0.0)
        for v in range(out.weight_QV.shape[1]):
            out.weight_QV[q0 + q, v] = np.float32(0.0)
    _clear(tally, columns * LANE)
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        high = read_block(task, block, first, count, hi)
        score_narrow(block, high, query_QD, score_QR)
        find_buckets(task, block, count, c0)
        for q in range(columns):
            c = q // task.heads
            score_R, total_V = score_QR[q], out.weight_QV[q0 + q]
            add_bias_narrow(task, block, count, c, task.bias_QV[q0 + q], score_R)
            mask_narrow(task, first, high, c0 + c, score_R)
            if keeping and q % task.heads == 0:
                for r in range(count):
                    scratch.kept[c * (hi - lo) + first - lo + r] = score_R[r]
            total = _weigh_narrow(task.norm, high, score_R, tally, q, total_V, pool_QD[q])
            gather_codes_narrow(task, block, count, c, score_R, total, total_V)
            pool_narrow(score_R, block, high, pool_QD[q])
    for q in range(columns):
        total, live = sum_of(tally.total, LANE * q), sum_of(tally.live, LANE * q)
        scale = _scale(task.norm, total, live)
        _write_column(out, q0 + q, tally.top[LANE * q], scale, pool_QD[q])
        for v in range(out.weight_QV.shape[1]):
            out.weight_QV[q0 + q, v] *= scale


@kernel
def forward_tiles(task, out, tile_N4, n0, n1):
    """Pool tiles n0 to n1 - 1."""
    keep = out.kept_CK.shape[1]
    longest = 0
    for n in range(n0, n1):
        longest = max(longest, tile_N4[n, 3] - tile_N4[n, 2])
    sorter = make_sorter(longest if keep else 0)
    scratch = make_scratch(task, tile_N4, n0, n1, 1 if keep else 0)
    _forward(task, out, tile_N4, n0, n1, scratch, sorter)


@leaf
def _forward(task, out, tile_N4, n0, n1, scratch, sorter):
    keep = out.kept_CK.shape[1]
    for n in range(n0, n1):
        c0, c1, lo, hi = tile_N4[n, 0], tile_N4[n, 1], tile_N4[n, 2], tile_N4[n, 3]
        if (c1 - c0) * task.heads >= WIDE_FROM:
            _forward_wide(task, out, (c0, c1, lo, hi), scratch, keep > 0)
        else:
            _forward_narrow(task, out, (c0, c1, lo, hi), scratch, keep > 0)
        for c in range(c1 - c0 if keep else 0):
            select_kept(task, c0 + c, lo, c * (hi - lo), keep, scratch, sorter, out.kept_CK[c0 + c])


@leaf
def select_kept(task, c, lo, place, keep, scratch, sorter, kept_K):
    """The best rows of one candidate by its scores of the tile's rows, which start at `place`."""
    start = max(task.span_C2[c, 0], lo)
    stop = max(task.span_C2[c, 1], start)
    row_N = task.row_L[start:stop] if task.listed else task.row_L[:0]
    score_N = scratch.kept[place + start - lo : place + stop - lo]
    select_best(score_N, row_N, start, stop - start, keep, sorter, kept_K)
