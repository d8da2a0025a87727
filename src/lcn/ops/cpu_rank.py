"""Kernels that score without weighing: flat scores, and every head's best rows."""

from __future__ import annotations

import numpy as np

from lcn.ops.cpu_blocks import (
    ROWS,
    add_bias_wide,
    find_buckets,
    for_tile,
    padded,
    read_block,
    score_wide,
)
from lcn.ops.cpu_forward import (
    keep_wide,
    make_scratch,
    query_wide,
    rearrange,
    select_kept,
)
from lcn.ops.cpu_topk import make_sorter
from lcn.ops.lanes import LANE, kernel, leaf


@leaf
def score_rows_wide(task, tile, scratch):
    """Score a tile's rows for all of its columns, each a row of `scratch.kept`."""
    c0, c1, lo, hi = tile
    q0, columns = c0 * task.heads, (c1 - c0) * task.heads
    wide, codes = padded(columns, LANE), task.bias_QV.shape[1]
    block = for_tile(scratch.block, c1 - c0)
    deep = block.vector_RD.shape[1]
    query_wide(task, scratch, q0, columns, wide)
    query_DQ = scratch.query[: deep * wide].reshape((deep, wide))
    rearrange(task.bias_QV, q0, columns, wide, scratch.bias)
    bias_VQ = scratch.bias[: codes * wide].reshape((codes, wide))
    score_RQ = scratch.score[: ROWS * wide].reshape((ROWS, wide))
    for first in range(lo, hi, ROWS):
        count = min(ROWS, hi - first)
        high = read_block(task, block, first, count, hi)
        score_wide(block, high, query_DQ, score_RQ)
        find_buckets(task, block, count, c0)
        add_bias_wide(task, block, count, bias_VQ, score_RQ, 1)
        keep_wide(score_RQ, count, columns, 1, scratch.kept, hi - lo, first - lo)


@kernel
def score_tiles(task, tile_N4, flat_SH, offset_C, n0, n1):
    """Write the scores of tiles n0 to n1 - 1 at each candidate's offset in the flat answer."""
    scratch = make_scratch(task, tile_N4, n0, n1, task.heads)
    _score(task, tile_N4, flat_SH, offset_C, n0, n1, scratch)


@leaf
def _score(task, tile_N4, flat_SH, offset_C, n0, n1, scratch):
    for n in range(n0, n1):
        c0, c1, lo, hi = tile_N4[n, 0], tile_N4[n, 1], tile_N4[n, 2], tile_N4[n, 3]
        score_rows_wide(task, (c0, c1, lo, hi), scratch)
        for c in range(c0, c1):
            start, stop = task.span_C2[c, 0], task.span_C2[c, 1]
            for h in range(task.heads):
                place = ((c - c0) * task.heads + h) * (hi - lo) - lo
                for t in range(start, stop):
                    flat_SH[offset_C[c] + t - start, h] = scratch.kept[place + t]


@kernel
def rank_tiles(task, tile_N4, kept_CHK, mean_CHK, n0, n1):
    """The best rows of every head, and the heads' mean scores of them."""
    longest = 0
    for n in range(n0, n1):
        longest = max(longest, tile_N4[n, 3] - tile_N4[n, 2])
    scratch, sorter = make_scratch(task, tile_N4, n0, n1, task.heads), make_sorter(longest)
    _rank(task, tile_N4, kept_CHK, mean_CHK, n0, n1, scratch, sorter)


@leaf
def _rank(task, tile_N4, kept_CHK, mean_CHK, n0, n1, scratch, sorter):
    heads, keep = kept_CHK.shape[1], kept_CHK.shape[2]
    for n in range(n0, n1):
        c0, c1, lo, hi = tile_N4[n, 0], tile_N4[n, 1], tile_N4[n, 2], tile_N4[n, 3]
        score_rows_wide(task, (c0, c1, lo, hi), scratch)
        for c in range(c0, c1):
            tile = (c - c0) * heads * (hi - lo)
            for h in range(heads):
                place, kept_K = tile + h * (hi - lo), kept_CHK[c, h]
                select_kept(task, c, lo, place, keep, scratch, sorter, kept_K)
                for k in range(keep):
                    if kept_K[k] >= 0:
                        total = np.float32(0.0)
                        for other in range(heads):
                            total += scratch.kept[tile + other * (hi - lo) + kept_K[k] - lo]
                        mean_CHK[c, h, k] = total / np.float32(heads)
