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
    add_bias_narrow,
    add_bias_wide,
    find_buckets,
    gather_codes_narrow,
    gather_codes_wide,
    make_block,
    mask_narrow,
    mask_wide,
    padded,
    read_block,
    score_narrow,
    score_wide,
    transpose_into,
)
from lcn.ops.cpu_topk import make_sorter, select_best
from lcn.ops.lane_steps import exp_lanes, live_lanes, max_lanes
from lcn.ops.lanes import LANE, WIDTH, add_lane, add_tile_1x2, add_tile_4x2, kernel


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
    total: np.ndarray
    """Sum of the weights relative to it."""
    live: np.ndarray
    """Rows so far."""
    block: np.ndarray
    """Sum of the weights of the current block."""


@kernel
def _make_tally(count):
    return Tally(
        np.full(count, -np.inf, np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
    )


@kernel
def _weigh_lanes(norm, score, stride, groups, tally, q):
    """Turn eight columns of scores into unscaled weights in place."""
    top, total = tally.top.ctypes.data + 4 * q, tally.block.ctypes.data + 4 * q
    if norm == SOFTMAX:
        exp_lanes(score, stride, groups, top, total)
    else:
        live_lanes(score, stride, groups, tally.live.ctypes.data + 4 * q, total)


@kernel
def _weigh_wide(norm, high, score_RQ, tally, total_VQ, pool_QD):
    """Turn scores into unscaled weights in place; shrink older totals under a new top score."""
    wide = score_RQ.shape[1]
    old_L = np.empty(LANE, np.float32)
    for q in range(0, wide, LANE):
        score = score_RQ.ctypes.data + 4 * q
        if norm == SOFTMAX:
            old_L[:] = tally.top[q : q + LANE]
            max_lanes(score, 4 * wide, high, tally.top.ctypes.data + 4 * q)
            for j in range(LANE):
                if tally.top[q + j] > old_L[j]:
                    shrink = np.exp(old_L[j] - tally.top[q + j])
                    tally.total[q + j] *= shrink
                    pool_QD[q + j, :] *= shrink
                    for v in range(total_VQ.shape[0]):
                        total_VQ[v, q + j] *= shrink
        _weigh_lanes(norm, score, 4 * wide, high, tally, q)
        add_lane(tally.total.ctypes.data + 4 * q, tally.block.ctypes.data + 4 * q)


@kernel
def pool_wide(weight_RQ, skip, block, high, pool_QD):
    """Add sum_r weight[r, skip + q] vector[r] to pool[q]."""
    wide, deep = weight_RQ.shape[1], pool_QD.shape[1]
    for q in range(0, pool_QD.shape[0], 4):
        for d in range(0, deep, WIDTH):
            add_tile_4x2(
                weight_RQ.ctypes.data + 4 * (skip + q), 4, 4 * wide,
                block.vector_RD.ctypes.data + 4 * d, 4 * deep,
                pool_QD.ctypes.data + 4 * (q * deep + d), 4 * deep,
                high,
            )  # fmt: skip


@kernel
def pool_narrow(weight_R, block, high, pool_D):
    """Add sum_r weight[r] vector[r] to pool."""
    deep = pool_D.shape[0]
    for d in range(0, deep, WIDTH):
        add_tile_1x2(
            weight_R.ctypes.data, 4, 4,
            block.vector_RD.ctypes.data + 4 * d, 4 * deep,
            pool_D.ctypes.data + 4 * d, 4 * deep,
            high,
        )  # fmt: skip


@kernel
def _scale(norm, total, live):
    if norm == SOFTMAX:
        return np.float32(1.0) / max(total, np.float32(1e-30))
    if norm == MEAN:
        return np.float32(1.0) / max(live, np.float32(1.0))
    return np.float32(1.0)


@kernel
def _write_column(out, q, top, scale, pool_D):
    out.stat_Q2[q, 0] = top if top > -np.inf else np.float32(0.0)
    out.stat_Q2[q, 1] = scale
    for d in range(out.vector_QD.shape[1]):
        out.vector_QD[q, d] = pool_D[d] * scale


@kernel
def _forward_wide(task, out, tile, kept_scores_CN):
    c0, c1, lo, hi = tile
    q0, columns = c0 * task.heads, (c1 - c0) * task.heads
    wide = padded(columns, LANE)
    block = make_block(task, c1 - c0)
    deep = block.vector_RD.shape[1]
    query_DQ = np.zeros((deep, wide), np.float32)
    transpose_into(task.query_QD, q0, columns, query_DQ, 0)
    bias_VQ = np.zeros((task.bias_QV.shape[1], wide), np.float32)
    transpose_into(task.bias_QV, q0, columns, bias_VQ, 0)
    total_VQ = np.zeros_like(bias_VQ)
    pool_QD = np.zeros((wide, deep), np.float32)
    score_RQ = np.empty((ROWS, wide), np.float32)
    tally = _make_tally(wide)
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        high = read_block(task, block, first, count, hi)
        score_wide(block, high, query_DQ, score_RQ)
        find_buckets(task, block, count, c0)
        add_bias_wide(task, block, count, bias_VQ, score_RQ, 1)
        mask_wide(task, first, high, c0, c1, score_RQ)
        for c in range(kept_scores_CN.shape[0]):
            for r in range(count):
                kept_scores_CN[c, first - lo + r] = score_RQ[r, c * task.heads]
        _weigh_wide(task.norm, high, score_RQ, tally, total_VQ, pool_QD)
        gather_codes_wide(task, block, count, score_RQ, 0, tally.block, total_VQ)
        pool_wide(score_RQ, 0, block, high, pool_QD)
    for q in range(columns):
        scale = _scale(task.norm, tally.total[q], tally.live[q])
        _write_column(out, q0 + q, tally.top[q], scale, pool_QD[q])
        for v in range(total_VQ.shape[0]):
            out.weight_QV[q0 + q, v] = total_VQ[v, q] * scale


@kernel
def _weigh_narrow(norm, high, score_R, tally, q, total_V, pool_D):
    """`_weigh_wide` for one column, whose eight lanes of a tally are parts of one sum."""
    lanes, score = LANE * q, score_R.ctypes.data
    if norm == SOFTMAX:
        old = tally.top[lanes]
        max_lanes(score, 4 * LANE, high // LANE, tally.top.ctypes.data + 4 * lanes)
        top = np.max(tally.top[lanes : lanes + LANE])
        if top > old:
            tally.top[lanes : lanes + LANE] = top
            shrink = np.exp(old - top)
            tally.total[lanes : lanes + LANE] *= shrink
            pool_D[:] *= shrink
            total_V[:] *= shrink
    _weigh_lanes(norm, score, 4 * LANE, high // LANE, tally, lanes)
    add_lane(tally.total.ctypes.data + 4 * lanes, tally.block.ctypes.data + 4 * lanes)
    return np.sum(tally.block[lanes : lanes + LANE])


@kernel
def _forward_narrow(task, out, tile, kept_scores_CN):
    c0, c1, lo, hi = tile
    q0, columns = c0 * task.heads, (c1 - c0) * task.heads
    block = make_block(task, c1 - c0)
    deep = block.vector_RD.shape[1]
    query_QD = np.zeros((columns, deep), np.float32)
    query_QD[:, : task.query_QD.shape[1]] = task.query_QD[q0 : q0 + columns]
    pool_QD = np.zeros((columns, deep), np.float32)
    score_QR = np.empty((columns, ROWS), np.float32)
    tally = _make_tally(columns * LANE)
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
            if q % task.heads == 0 and c < kept_scores_CN.shape[0]:
                kept_scores_CN[c, first - lo : first - lo + count] = score_R[:count]
            total = _weigh_narrow(task.norm, high, score_R, tally, q, total_V, pool_QD[q])
            gather_codes_narrow(task, block, count, c, score_R, total, total_V)
            pool_narrow(score_R, block, high, pool_QD[q])
    for q in range(columns):
        lanes = slice(LANE * q, LANE * (q + 1))
        scale = _scale(task.norm, np.sum(tally.total[lanes]), np.sum(tally.live[lanes]))
        _write_column(out, q0 + q, tally.top[LANE * q], scale, pool_QD[q])
        out.weight_QV[q0 + q, :] *= scale


@kernel
def forward_tiles(task, out, tile_N4, n0, n1):
    """Pool tiles n0 to n1 - 1. `out.weight_QV` must start as zeros."""
    keep = out.kept_CK.shape[1]
    longest = 0
    for n in range(n0, n1):
        longest = max(longest, tile_N4[n, 3] - tile_N4[n, 2])
    scratch = make_sorter(longest if keep else 0)
    for n in range(n0, n1):
        c0, c1, lo, hi = tile_N4[n, 0], tile_N4[n, 1], tile_N4[n, 2], tile_N4[n, 3]
        scores_CN = np.empty((c1 - c0 if keep else 0, hi - lo), np.float32)
        if (c1 - c0) * task.heads >= WIDE_FROM:
            _forward_wide(task, out, (c0, c1, lo, hi), scores_CN)
        else:
            _forward_narrow(task, out, (c0, c1, lo, hi), scores_CN)
        for c in range(scores_CN.shape[0]):
            start = max(task.span_C2[c0 + c, 0], lo)
            stop = max(task.span_C2[c0 + c, 1], start)
            row_N = task.row_L[start:stop] if task.listed else task.row_L[:0]
            select_best(
                scores_CN[c, start - lo : stop - lo], row_N, start, stop - start, keep,
                scratch, out.kept_CK[c0 + c],
            )  # fmt: skip


@kernel
def score_tiles(task, tile_N4, flat_SH, offset_C, n0, n1):
    """Write the scores of tiles n0 to n1 - 1 at each candidate's offset in the flat answer."""
    for n in range(n0, n1):
        c0, c1, lo, hi = tile_N4[n, 0], tile_N4[n, 1], tile_N4[n, 2], tile_N4[n, 3]
        q0, columns = c0 * task.heads, (c1 - c0) * task.heads
        wide = padded(columns, LANE)
        block = make_block(task, c1 - c0)
        query_DQ = np.zeros((block.vector_RD.shape[1], wide), np.float32)
        transpose_into(task.query_QD, q0, columns, query_DQ, 0)
        bias_VQ = np.zeros((task.bias_QV.shape[1], wide), np.float32)
        transpose_into(task.bias_QV, q0, columns, bias_VQ, 0)
        score_RQ = np.empty((ROWS, wide), np.float32)
        for first in range(lo, hi, ROWS):
            count = min(ROWS, hi - first)
            high = read_block(task, block, first, count, hi)
            score_wide(block, high, query_DQ, score_RQ)
            find_buckets(task, block, count, c0)
            add_bias_wide(task, block, count, bias_VQ, score_RQ, 1)
            for c in range(c0, c1):
                start = max(task.span_C2[c, 0], first)
                stop = min(task.span_C2[c, 1], first + count)
                place = offset_C[c] - task.span_C2[c, 0]
                for t in range(start, stop):
                    for h in range(task.heads):
                        q = (c - c0) * task.heads + h
                        flat_SH[place + t, h] = score_RQ[t - first, q]
