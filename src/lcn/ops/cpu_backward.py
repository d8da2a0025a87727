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
    AHEAD,
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
    transpose_into,
)
from lcn.ops.cpu_forward import pool_narrow, pool_wide, sum_of
from lcn.ops.lane_steps import turn_linear, turn_softmax
from lcn.ops.lanes import LANE, WIDTH, add_row_1x2, add_row_1x8, kernel, leaf, prefetch


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


@leaf
def width_of(tile, heads):
    """Floats per row that a tile leaves in the buffer."""
    columns = (tile[1] - tile[0]) * heads
    return 2 * (padded(columns, LANE) if columns >= WIDE_FROM else columns)


@leaf
def _offsets(out, slope, q):
    """dOut.out + dW.W of one column."""
    total = np.float32(0.0)
    for d in range(out.vector_QD.shape[1]):
        total += out.vector_QD[q, d] * slope.vector_QD[q, d]
    for v in range(out.weight_QV.shape[1]):
        total += out.weight_QV[q, v] * slope.weight_QV[q, v]
    return total


@leaf
def _turn(norm, score, slope, stride, groups, place, lanes_4L):
    """Turn (score, dw) into (w, ds) in place, with the lanes from `place` on.

    `lanes_4L` holds the score that counts as 0, the factor of the weights, the middle of dw, and
    receives the sum of ds.
    """
    step = 4 * lanes_4L.shape[1]
    zero = lanes_4L.ctypes.data + 4 * place
    scale, middle, total = zero + step, zero + 2 * step, zero + 3 * step
    if norm == SOFTMAX:
        turn_softmax(score, slope, stride, groups, zero, scale, middle, total)
    else:
        turn_linear(score, slope, stride, groups, zero, scale, middle, total)


class Scratch(NamedTuple):
    """Memory of one thread for one tile after the other; flat arrays take the tile's shape."""

    block: Block
    both: np.ndarray
    bias: np.ndarray
    lanes: np.ndarray
    total: np.ndarray
    pool: np.ndarray


@kernel
def _make_scratch(task, tile_N4, n0, n1):
    candidates = 1
    for n in range(n0, n1):
        candidates = max(candidates, tile_N4[n, 1] - tile_N4[n, 0])
    half = max(padded(candidates * task.heads, LANE), LANE * WIDE_FROM)
    block = make_block(task, candidates)
    deep, codes = block.vector_RD.shape[1], task.bias_QV.shape[1]
    return Scratch(
        block,
        np.empty(2 * deep * half, np.float32),
        np.empty(2 * codes * half, np.float32),
        np.empty(4 * half, np.float32),
        np.empty(codes * half, np.float32),
        np.empty(deep * half, np.float32),
    )


@leaf
def _backward_wide(task, out, slope, tile, scratch, pair_NRQ):
    c0, c1, lo, hi = tile
    q0, columns = c0 * task.heads, (c1 - c0) * task.heads
    half, codes = padded(columns, LANE), task.bias_QV.shape[1]
    block = for_tile(scratch.block, c1 - c0)
    deep = block.vector_RD.shape[1]
    both_DQ = scratch.both[: deep * 2 * half].reshape((deep, 2 * half))
    bias_VQ = scratch.bias[: codes * 2 * half].reshape((codes, 2 * half))
    lanes_4Q = scratch.lanes[: 4 * half].reshape((4, half))
    total_VQ = scratch.total[: codes * half].reshape((codes, half))
    pool_QD = scratch.pool[: half * deep].reshape((half, deep))
    both_DQ[:] = 0.0
    bias_VQ[:] = 0.0
    lanes_4Q[:] = 0.0
    total_VQ[:] = 0.0
    pool_QD[:] = 0.0
    transpose_into(task.query_QD, q0, columns, both_DQ, 0)
    transpose_into(slope.vector_QD, q0, columns, both_DQ, half)
    transpose_into(task.bias_QV, q0, columns, bias_VQ, 0)
    transpose_into(slope.weight_QV, q0, columns, bias_VQ, half)
    transpose_into(out.stat_Q2, q0, columns, lanes_4Q, 0)
    for q in range(columns):
        lanes_4Q[2, q] = _offsets(out, slope, q0 + q)
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        pair_RQ = pair_NRQ[(first - lo) // ROWS]
        high = read_block(task, block, first, count, hi)
        score_wide(block, high, both_DQ, pair_RQ)
        find_buckets(task, block, count, c0)
        add_bias_wide(task, block, count, bias_VQ, pair_RQ, 2)
        mask_wide(task, first, high, c0, c1, pair_RQ)
        pairs = pair_RQ.ctypes.data
        for q in range(0, half, LANE):
            score = pairs + 4 * q
            _turn(task.norm, score, score + 4 * half, 8 * half, high, q, lanes_4Q)
        gather_codes_wide(task, block, count, pair_RQ, half, lanes_4Q[3], total_VQ)
        pool_wide(pair_RQ, half, block, high, pool_QD)
    for q in range(columns):
        for d in range(slope.query_QD.shape[1]):
            slope.query_QD[q0 + q, d] = pool_QD[q, d]
        for v in range(total_VQ.shape[0]):
            slope.bias_QV[q0 + q, v] = total_VQ[v, q]


@leaf
def _backward_narrow(task, out, slope, tile, scratch, pair_NQR):
    c0, c1, lo, hi = tile
    q0, columns = c0 * task.heads, (c1 - c0) * task.heads
    block = for_tile(scratch.block, c1 - c0)
    width, deep = task.query_QD.shape[1], block.vector_RD.shape[1]
    both_QD = scratch.both[: 2 * columns * deep].reshape((2 * columns, deep))
    pool_QD = scratch.pool[: columns * deep].reshape((columns, deep))
    lanes_4L = scratch.lanes[: 4 * columns * LANE].reshape((4, columns * LANE))
    both_QD[:] = 0.0
    pool_QD[:] = 0.0
    for q in range(columns):
        for d in range(width):
            both_QD[q, d] = task.query_QD[q0 + q, d]
            both_QD[columns + q, d] = slope.vector_QD[q0 + q, d]
        middle = _offsets(out, slope, q0 + q)
        for n in range(LANE * q, LANE * (q + 1)):
            lanes_4L[0, n], lanes_4L[1, n] = out.stat_Q2[q0 + q, 0], out.stat_Q2[q0 + q, 1]
            lanes_4L[2, n] = middle
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        pair_QR = pair_NQR[(first - lo) // ROWS]
        high = read_block(task, block, first, count, hi)
        score_narrow(block, high, both_QD, pair_QR)
        find_buckets(task, block, count, c0)
        for q in range(columns):
            c = q // task.heads
            score_R, slope_R = pair_QR[q], pair_QR[columns + q]
            add_bias_narrow(task, block, count, c, task.bias_QV[q0 + q], score_R)
            add_bias_narrow(task, block, count, c, slope.weight_QV[q0 + q], slope_R)
            mask_narrow(task, first, high, c0 + c, score_R)
            score, place = score_R.ctypes.data, LANE * q
            half = 4 * ROWS * columns
            _turn(task.norm, score, score + half, 4 * LANE, high // LANE, place, lanes_4L)
            total = sum_of(lanes_4L[3], place)
            gather_codes_narrow(task, block, count, c, slope_R, total, slope.bias_QV[q0 + q])
            pool_narrow(slope_R, block, high, pool_QD[q])
    for q in range(columns):
        for d in range(width):
            slope.query_QD[q0 + q, d] = pool_QD[q, d]


class Step(NamedTuple):
    """A run of tiles and the buffer between the two steps of their backward."""

    tile_N4: np.ndarray
    start_N: np.ndarray
    """Where in the buffer each tile leaves its (w, ds)."""
    buffer: np.ndarray
    first: int
    last: int


@kernel
def backward_tiles(task, out, slope, step, n0, n1):
    """Walk tiles n0 to n1 - 1 of a step."""
    scratch = _make_scratch(task, step.tile_N4, n0, n1)
    _backward(task, out, slope, step, n0, n1, scratch)


@leaf
def _backward(task, out, slope, step, n0, n1, scratch):
    for n in range(n0, n1):
        tile_4 = step.tile_N4[n]
        tile = (tile_4[0], tile_4[1], tile_4[2], tile_4[3])
        blocks = padded(tile[3] - tile[2], ROWS) // ROWS
        width = width_of(tile, task.heads)
        pairs = step.buffer[step.start_N[n] : step.start_N[n] + blocks * ROWS * width]
        if (tile[1] - tile[0]) * task.heads >= WIDE_FROM:
            pair_NRQ = pairs.reshape((blocks, ROWS, width))
            _backward_wide(task, out, slope, tile, scratch, pair_NRQ)
        else:
            pair_NQR = pairs.reshape((blocks, width, ROWS))
            _backward_narrow(task, out, slope, tile, scratch, pair_NQR)


@leaf
def _own_rows(task, first, count, share, place_R, item_R):
    """List the rows of a block (and their items) that belong to worker share[0] of share[1]."""
    found = 0
    mine, workers = np.uint64(share[0]), np.uint64(share[1])
    for r in range(count):
        t = task.row_L[first + r] if task.listed else np.int32(first + r)
        item = np.int64(task.item_T[t])
        place_R[found], item_R[found] = r, item
        # Fibonacci hashing: neighbouring items go to different workers.
        hashed = np.uint64(item) * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)
        found += (hashed * workers) >> np.uint64(32) == mine
    return found


@leaf
def _add_row(pair, pair_deep, both_KD, grad, width, rest_D):
    """Add sum_k pair[k] both[k] to one item's gradient; addresses and strides in bytes."""
    depth, deep = both_KD.shape
    both, d = both_KD.ctypes.data, 0
    while d + 8 * LANE <= width:
        add_row_1x8(pair, 0, pair_deep, both + 4 * d, 4 * deep, grad + 4 * d, 0, depth)
        d += 8 * LANE
    while d + WIDTH <= width:
        add_row_1x2(pair, 0, pair_deep, both + 4 * d, 4 * deep, grad + 4 * d, 0, depth)
        d += WIDTH
    if d < width:
        for n in range(len(rest_D)):
            rest_D[n] = np.float32(0.0)
        rest = rest_D.ctypes.data
        add_row_1x2(pair, 0, pair_deep, both + 4 * d, 4 * deep, rest, 0, depth)
    return d


@kernel
def scatter_tiles(task, slope, step, grad_ID, share):
    """Add the gradients of a step's tiles to the vectors of this worker's items.

    `share` is (number of this worker, number of workers).
    """
    depth, deep = 1, padded(grad_ID.shape[1], WIDTH)
    for n in range(step.first, step.last):
        tile_4 = step.tile_N4[n]
        depth = max(depth, width_of((tile_4[0], tile_4[1], tile_4[2], tile_4[3]), task.heads))
    place_R, item_R = np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
    rest_D, both = np.zeros(WIDTH, np.float32), np.empty(depth * deep, np.float32)
    _scatter(task, slope, step, grad_ID, share, (place_R, item_R, rest_D, both))


@leaf
def _scatter(task, slope, step, grad_ID, share, scratch):
    place_R, item_R, rest_D, both = scratch
    width = grad_ID.shape[1]
    deep, bytes_per_row = padded(width, WIDTH), 4 * width
    for n in range(step.first, step.last):
        tile_4 = step.tile_N4[n]
        tile = (tile_4[0], tile_4[1], tile_4[2], tile_4[3])
        q0, columns = tile[0] * task.heads, (tile[1] - tile[0]) * task.heads
        depth = width_of(tile, task.heads)
        both_KD = both[: depth * deep].reshape((depth, deep))
        both_KD[:] = 0.0
        for q in range(columns):
            for d in range(width):
                both_KD[q, d] = slope.vector_QD[q0 + q, d]
                both_KD[depth // 2 + q, d] = task.query_QD[q0 + q, d]
        # Wide pairs lie row after row, narrow ones column after column.
        wide = columns >= WIDE_FROM
        by_row, by_column = (4 * depth, 4) if wide else (4, 4 * ROWS)
        for first in range(tile[2], tile[3], ROWS):
            count = min(ROWS, tile[3] - first)
            pairs = step.buffer.ctypes.data
            pairs += 4 * (step.start_N[n] + (first - tile[2]) * depth)
            found = _own_rows(task, first, count, share, place_R, item_R)
            for r in range(found):
                soon = grad_ID.ctypes.data + bytes_per_row * item_R[min(r + AHEAD, found - 1)]
                for byte in range(0, bytes_per_row, 64):
                    prefetch(soon + byte)
                item = item_R[r]
                grad = grad_ID.ctypes.data + bytes_per_row * item
                pair = pairs + by_row * place_R[r]
                done = _add_row(pair, by_column, both_KD, grad, width, rest_D)
                for d in range(done, width):
                    grad_ID[item, d] += rest_D[d - done]
