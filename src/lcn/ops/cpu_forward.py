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
from lcn.ops.cpu_topk import select_best
from lcn.ops.lanes import LANE, WIDTH, add_tile_1x2, add_tile_4x2, exp_of_negative, kernel


class Pooled(NamedTuple):
    """What the forward writes."""

    vector_QD: np.ndarray
    weight_QV: np.ndarray
    stat_Q2: np.ndarray
    """[Q, 2] the score that counts as 0 and the factor of the weights: all that the backward
    needs to find the weights again."""
    kept_CK: np.ndarray


@kernel
def weigh_wide(norm, score_RQ, top_Q, shrink_Q, sum_Q, live_Q):
    """Turn scores into unscaled weights in place; return whether older totals must shrink.

    `sum_Q` receives the block's sums, `live_Q` grows by the number of rows.
    """
    shrinks = False
    wide = score_RQ.shape[1]
    for q in range(0, wide, LANE):
        if norm == SOFTMAX:
            for j in range(LANE):
                shrink_Q[q + j] = top_Q[q + j]
            for r in range(ROWS):
                for j in range(LANE):
                    x = score_RQ[r, q + j]
                    shrink_Q[q + j] = x if x > shrink_Q[q + j] else shrink_Q[q + j]
            for j in range(LANE):
                new, old = shrink_Q[q + j], top_Q[q + j]
                shrinks |= new != old
                top_Q[q + j] = new
                shrink_Q[q + j] = exp_of_negative(old - new) if new > old else np.float32(1.0)
            _exp_lane(score_RQ, top_Q, sum_Q, q)
        else:
            for j in range(LANE):
                sum_Q[q + j] = 0.0
            for r in range(ROWS):
                for j in range(LANE):
                    x = score_RQ[r, q + j]
                    live = x > -np.inf
                    x = x if live else np.float32(0.0)
                    score_RQ[r, q + j] = x
                    sum_Q[q + j] += x
                    live_Q[q + j] += np.float32(live)
    return shrinks


@kernel
def _exp_lane(score_RQ, top_Q, sum_Q, q):
    for j in range(LANE):
        sum_Q[q + j] = 0.0
    for r in range(ROWS):
        for j in range(LANE):
            top = top_Q[q + j]
            x = score_RQ[r, q + j] - (top if top > -np.inf else np.float32(0.0))
            x = exp_of_negative(x)
            score_RQ[r, q + j] = x
            sum_Q[q + j] += x


@kernel
def pool_wide(weight_RQ, skip, block, pool_QD):
    """Add sum_r weight[r, skip + q] vector[r] to pool[q]."""
    wide, deep = weight_RQ.shape[1], pool_QD.shape[1]
    for q in range(0, pool_QD.shape[0], 4):
        for d in range(0, deep, WIDTH):
            add_tile_4x2(
                weight_RQ.ctypes.data + 4 * (skip + q), 4, 4 * wide,
                block.vector_RD.ctypes.data + 4 * d, 4 * deep,
                pool_QD.ctypes.data + 4 * (q * deep + d), 4 * deep,
                ROWS,
            )  # fmt: skip


@kernel
def pool_narrow(weight_R, block, pool_D):
    """Add sum_r weight[r] vector[r] to pool."""
    deep = pool_D.shape[0]
    for d in range(0, deep, WIDTH):
        add_tile_1x2(
            weight_R.ctypes.data, 4, 4,
            block.vector_RD.ctypes.data + 4 * d, 4 * deep,
            pool_D.ctypes.data + 4 * d, 4 * deep,
            ROWS,
        )  # fmt: skip


@kernel
def _scale(norm, total, live):
    if norm == SOFTMAX:
        return np.float32(1.0) / max(total, np.float32(1e-30))
    if norm == MEAN:
        return np.float32(1.0) / max(live, np.float32(1.0))
    return np.float32(1.0)


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
    top_Q = np.full(wide, -np.inf, np.float32)
    total_Q, sum_Q, live_Q = (
        np.zeros(wide, np.float32),
        np.zeros(wide, np.float32),
        np.zeros(wide, np.float32),
    )
    shrink_Q = np.ones(wide, np.float32)
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        read_block(task, block, first, count, hi)
        score_wide(block, query_DQ, score_RQ)
        find_buckets(task, block, count, c0)
        add_bias_wide(task, block, count, bias_VQ, score_RQ, 1)
        mask_wide(task, first, c0, c1, score_RQ)
        for c in range(kept_scores_CN.shape[0]):
            for r in range(count):
                kept_scores_CN[c, first - lo + r] = score_RQ[r, c * task.heads]
        if weigh_wide(task.norm, score_RQ, top_Q, shrink_Q, sum_Q, live_Q):
            for q in range(wide):
                total_Q[q] *= shrink_Q[q]
                for d in range(deep):
                    pool_QD[q, d] *= shrink_Q[q]
            for v in range(total_VQ.shape[0]):
                for q in range(wide):
                    total_VQ[v, q] *= shrink_Q[q]
        for q in range(wide):
            total_Q[q] += sum_Q[q]
        gather_codes_wide(task, block, count, score_RQ, 0, sum_Q, total_VQ)
        pool_wide(score_RQ, 0, block, pool_QD)
    for q in range(columns):
        scale = _scale(task.norm, total_Q[q], live_Q[q])
        out.stat_Q2[q0 + q, 0] = top_Q[q] if top_Q[q] > -np.inf else np.float32(0.0)
        out.stat_Q2[q0 + q, 1] = scale
        for d in range(out.vector_QD.shape[1]):
            out.vector_QD[q0 + q, d] = pool_QD[q, d] * scale
        for v in range(total_VQ.shape[0]):
            out.weight_QV[q0 + q, v] = total_VQ[v, q] * scale


@kernel
def _weigh_narrow(norm, score_R, top):
    """Turn one column's scores into unscaled weights; return new top, sum and live rows."""
    total, live = np.float32(0.0), np.float32(0.0)
    if norm == SOFTMAX:
        for r in range(ROWS):
            top = score_R[r] if score_R[r] > top else top
        zero = top if top > -np.inf else np.float32(0.0)
        for r in range(ROWS):
            x = exp_of_negative(score_R[r] - zero)
            score_R[r] = x
            total += x
        return top, total, live
    for r in range(ROWS):
        alive = score_R[r] > -np.inf
        x = score_R[r] if alive else np.float32(0.0)
        score_R[r] = x
        total += x
        live += np.float32(alive)
    return top, total, live


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
    top_Q = np.full(columns, -np.inf, np.float32)
    total_Q, live_Q = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        read_block(task, block, first, count, hi)
        score_narrow(block, query_QD, score_QR)
        find_buckets(task, block, count, c0)
        for q in range(columns):
            c = q // task.heads
            score_R, total_V = score_QR[q], out.weight_QV[q0 + q]
            add_bias_narrow(task, block, count, c, task.bias_QV[q0 + q], score_R)
            mask_narrow(task, first, c0 + c, score_R)
            if q % task.heads == 0 and c < kept_scores_CN.shape[0]:
                kept_scores_CN[c, first - lo : first - lo + count] = score_R[:count]
            top, total, live = _weigh_narrow(task.norm, score_R, top_Q[q])
            if top > top_Q[q]:
                shrink = exp_of_negative(top_Q[q] - top)
                top_Q[q] = top
                total_Q[q] *= shrink
                pool_QD[q, :] *= shrink
                total_V[:] *= shrink
            total_Q[q] += total
            live_Q[q] += live
            gather_codes_narrow(task, block, count, c, score_R, total, total_V)
            pool_narrow(score_R, block, pool_QD[q])
    for q in range(columns):
        scale = _scale(task.norm, total_Q[q], live_Q[q])
        out.stat_Q2[q0 + q, 0] = top_Q[q] if top_Q[q] > -np.inf else np.float32(0.0)
        out.stat_Q2[q0 + q, 1] = scale
        for d in range(out.vector_QD.shape[1]):
            out.vector_QD[q0 + q, d] = pool_QD[q, d] * scale
        out.weight_QV[q0 + q, :] *= scale


@kernel
def forward_tiles(task, out, tile_N4, n0, n1):
    """Pool tiles n0 to n1 - 1. `out.weight_QV` must start as zeros."""
    keep = out.kept_CK.shape[1]
    longest = 0
    for n in range(n0, n1):
        longest = max(longest, tile_N4[n, 3] - tile_N4[n, 2])
    key_N = np.empty(longest if keep else 0, np.int32)
    word_N = np.empty(longest if keep else 0, np.int64)
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
                key_N, word_N, out.kept_CK[c0 + c],
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
            read_block(task, block, first, count, hi)
            score_wide(block, query_DQ, score_RQ)
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
