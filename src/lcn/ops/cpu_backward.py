"""Backward kernels, in two steps that alternate over short runs of tiles.

`backward_tiles` reads the rows again, finds each row's weight w and score gradient ds, sums the
gradients of queries and biases, and leaves (w, ds) of every row and column in a buffer. Then
`scatter_tiles` adds w dOut + ds query to the gradient of each row's vector. Its workers divide
the *items* among themselves, so no two write the same vector, nothing is allocated per worker,
and every sum has the same order whatever the number of workers.

    out = sum_r w_r v_r,  W = sum_r w_r code_r;   dw_r = dOut.v_r + dW.code_r
    softmax: ds_r = w_r (dw_r - dOut.out - dW.W);   mean, raw: ds_r = scale dw_r
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lcn.ops.cpu_blocks import (
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
from lcn.ops.cpu_forward import pool_narrow, pool_wide
from lcn.ops.lanes import LANE, WIDTH, exp_of_negative, kernel, prefetch, tile_4x2


class Slope(NamedTuple):
    """Gradients given and wanted."""

    vector_QD: np.ndarray
    """Given, of the pooled vectors."""
    weight_QV: np.ndarray
    """Given, of the pooled codes."""
    query_QD: np.ndarray
    """Wanted."""
    bias_QV: np.ndarray
    """Wanted; starts as zeros."""


@kernel
def width_of(tile, heads):
    """Floats per row that a tile leaves in the buffer."""
    columns = (tile[1] - tile[0]) * heads
    return 2 * (padded(columns, LANE) if columns >= WIDE_FROM else columns)


@kernel
def _offsets(out, slope, q):
    """dOut.out + dW.W of one column."""
    total = np.float32(0.0)
    for d in range(out.vector_QD.shape[1]):
        total += out.vector_QD[q, d] * slope.vector_QD[q, d]
    for v in range(out.weight_QV.shape[1]):
        total += out.weight_QV[q, v] * slope.weight_QV[q, v]
    return total


@kernel
def _turn_wide(norm, pair_RQ, stat_2Q, middle_Q, sum_Q):
    """Turn (score, dw) into (w, ds) in place; `sum_Q` receives the sums of ds."""
    half = pair_RQ.shape[1] // 2
    for q in range(0, half, LANE):
        for j in range(LANE):
            sum_Q[q + j] = 0.0
        for r in range(ROWS):
            for j in range(LANE):
                s, dw = pair_RQ[r, q + j], pair_RQ[r, half + q + j]
                scale = stat_2Q[1, q + j]
                if norm == SOFTMAX:
                    w = exp_of_negative(s - stat_2Q[0, q + j]) * scale
                    ds = w * (dw - middle_Q[q + j])
                else:
                    live = s > -np.inf
                    w = s * scale if live else np.float32(0.0)
                    ds = dw * scale if live else np.float32(0.0)
                pair_RQ[r, q + j] = w
                pair_RQ[r, half + q + j] = ds
                sum_Q[q + j] += ds


@kernel
def _backward_wide(task, out, slope, tile, pair_NRQ):
    c0, c1, lo, hi = tile
    q0, columns = c0 * task.heads, (c1 - c0) * task.heads
    half = padded(columns, LANE)
    block = make_block(task, c1 - c0)
    deep = block.vector_RD.shape[1]
    both_DQ = np.zeros((deep, 2 * half), np.float32)
    transpose_into(task.query_QD, q0, columns, both_DQ, 0)
    transpose_into(slope.vector_QD, q0, columns, both_DQ, half)
    bias_VQ = np.zeros((task.bias_QV.shape[1], 2 * half), np.float32)
    transpose_into(task.bias_QV, q0, columns, bias_VQ, 0)
    transpose_into(slope.weight_QV, q0, columns, bias_VQ, half)
    stat_2Q, middle_Q = np.zeros((2, half), np.float32), np.zeros(half, np.float32)
    transpose_into(out.stat_Q2, q0, columns, stat_2Q, 0)
    for q in range(columns):
        middle_Q[q] = _offsets(out, slope, q0 + q)
    total_VQ = np.zeros((task.bias_QV.shape[1], half), np.float32)
    pool_QD = np.zeros((half, deep), np.float32)
    sum_Q = np.zeros(half, np.float32)
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        pair_RQ = pair_NRQ[(first - lo) // ROWS]
        read_block(task, block, first, count, hi)
        score_wide(block, both_DQ, pair_RQ)
        find_buckets(task, block, count, c0)
        add_bias_wide(task, block, count, bias_VQ, pair_RQ, 2)
        mask_wide(task, first, c0, c1, pair_RQ)
        _turn_wide(task.norm, pair_RQ, stat_2Q, middle_Q, sum_Q)
        gather_codes_wide(task, block, count, pair_RQ, half, sum_Q, total_VQ)
        pool_wide(pair_RQ, half, block, pool_QD)
    for q in range(columns):
        for d in range(slope.query_QD.shape[1]):
            slope.query_QD[q0 + q, d] = pool_QD[q, d]
        for v in range(total_VQ.shape[0]):
            slope.bias_QV[q0 + q, v] = total_VQ[v, q]


@kernel
def _turn_narrow(norm, score_R, slope_R, zero, scale, middle):
    """Turn (score, dw) of one column into (w, ds) in place; return the sum of ds."""
    total = np.float32(0.0)
    for r in range(ROWS):
        if norm == SOFTMAX:
            w = exp_of_negative(score_R[r] - zero) * scale
            ds = w * (slope_R[r] - middle)
        else:
            live = score_R[r] > -np.inf
            w = score_R[r] * scale if live else np.float32(0.0)
            ds = slope_R[r] * scale if live else np.float32(0.0)
        score_R[r] = w
        slope_R[r] = ds
        total += ds
    return total


@kernel
def _backward_narrow(task, out, slope, tile, pair_NQR):
    c0, c1, lo, hi = tile
    q0, columns = c0 * task.heads, (c1 - c0) * task.heads
    block = make_block(task, c1 - c0)
    width, deep = task.query_QD.shape[1], block.vector_RD.shape[1]
    both_QD = np.zeros((2 * columns, deep), np.float32)
    both_QD[:columns, :width] = task.query_QD[q0 : q0 + columns]
    both_QD[columns:, :width] = slope.vector_QD[q0 : q0 + columns]
    pool_QD = np.zeros((columns, deep), np.float32)
    middle_Q = np.zeros(columns, np.float32)
    for q in range(columns):
        middle_Q[q] = _offsets(out, slope, q0 + q)
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        pair_QR = pair_NQR[(first - lo) // ROWS]
        read_block(task, block, first, count, hi)
        score_narrow(block, both_QD, pair_QR)
        find_buckets(task, block, count, c0)
        for q in range(columns):
            c = q // task.heads
            score_R, slope_R = pair_QR[q], pair_QR[columns + q]
            add_bias_narrow(task, block, count, c, task.bias_QV[q0 + q], score_R)
            add_bias_narrow(task, block, count, c, slope.weight_QV[q0 + q], slope_R)
            mask_narrow(task, first, c0 + c, score_R)
            zero, scale = out.stat_Q2[q0 + q, 0], out.stat_Q2[q0 + q, 1]
            total = _turn_narrow(task.norm, score_R, slope_R, zero, scale, middle_Q[q])
            gather_codes_narrow(task, block, count, c, slope_R, total, slope.bias_QV[q0 + q])
            pool_narrow(slope_R, block, pool_QD[q])
    slope.query_QD[q0 : q0 + columns] = pool_QD[:, :width]


@kernel
def backward_tiles(task, out, slope, tile_N4, start_N, buffer, n0, n1):
    """Walk tiles n0 to n1 - 1; tile n leaves its (w, ds) at `start_N[n]` of the buffer."""
    for n in range(n0, n1):
        tile = (tile_N4[n, 0], tile_N4[n, 1], tile_N4[n, 2], tile_N4[n, 3])
        blocks = padded(tile[3] - tile[2], ROWS) // ROWS
        width = width_of(tile, task.heads)
        pairs = buffer[start_N[n] : start_N[n] + blocks * ROWS * width]
        if (tile[1] - tile[0]) * task.heads >= WIDE_FROM:
            _backward_wide(task, out, slope, tile, pairs.reshape((blocks, ROWS, width)))
        else:
            _backward_narrow(task, out, slope, tile, pairs.reshape((blocks, width, ROWS)))


@kernel
def _collect(task, pairs, first, count, wide, mine, workers, item_R, pair_RK):
    """Copy the (w, ds) of this worker's rows; return how many there are."""
    found, width = 0, pair_RK.shape[1]
    bytes_per_row = 4 * task.vector_ID.shape[1]
    for r in range(count):
        t = task.row_L[first + r] if task.listed else np.int32(first + r)
        item = task.item_T[t]
        item_R[found] = item
        if wide:
            for k in range(width):
                pair_RK[found, k] = pairs[r * width + k]
        else:
            for k in range(width):
                pair_RK[found, k] = pairs[k * ROWS + r]
        # Fibonacci hashing: neighbouring items go to different workers.
        owner = ((np.uint64(item) * np.uint64(2654435761) & np.uint64(0xFFFFFFFF))
                 * np.uint64(workers)) >> np.uint64(32)  # fmt: skip
        found += owner == np.uint64(mine)
    return found


@kernel
def scatter_tiles(task, slope, tile_N4, start_N, buffer, n0, n1, grad_ID, mine, workers):
    """Add the gradients of tiles n0 to n1 - 1 to the vectors of this worker's items."""
    width = grad_ID.shape[1]
    deep = padded(width, WIDTH)
    item_R = np.zeros(ROWS + 1, np.int32)
    step_RD = np.zeros((ROWS, deep), np.float32)
    for n in range(n0, n1):
        tile = (tile_N4[n, 0], tile_N4[n, 1], tile_N4[n, 2], tile_N4[n, 3])
        q0, columns = tile[0] * task.heads, (tile[1] - tile[0]) * task.heads
        wide = columns >= WIDE_FROM
        pairs = width_of(tile, task.heads)
        both_KD = np.zeros((pairs, deep), np.float32)
        both_KD[:columns, :width] = slope.vector_QD[q0 : q0 + columns]
        both_KD[pairs // 2 : pairs // 2 + columns, :width] = task.query_QD[q0 : q0 + columns]
        pair_RK = np.zeros((ROWS + 1, pairs), np.float32)
        for first in range(tile[2], tile[3], ROWS):
            count = min(ROWS, tile[3] - first)
            start = start_N[n] + (first - tile[2]) * pairs
            here = buffer[start : start + ROWS * pairs]
            found = _collect(task, here, first, count, wide, mine, workers, item_R, pair_RK)
            for r in range(found):
                for byte in range(0, 4 * width, 64):
                    prefetch(grad_ID.ctypes.data + 4 * width * np.int64(item_R[r]) + byte)
            for r in range(0, found, 4):
                for d in range(0, deep, WIDTH):
                    tile_4x2(
                        pair_RK.ctypes.data + 4 * pairs * r, 4 * pairs, 4,
                        both_KD.ctypes.data + 4 * d, 4 * deep,
                        step_RD.ctypes.data + 4 * (r * deep + d), 4 * deep,
                        pairs,
                    )  # fmt: skip
            for r in range(found):
                for d in range(width):
                    grad_ID[item_R[r], d] += step_RD[r, d]
