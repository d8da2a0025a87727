"""The compiled form of `projected.attend_listed`.

Every row's key and value are summed up once, one after the other; candidates read them in place.
Shapes as in `projected`; Y = 2 B, R rows of one candidate, padded to whole lanes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lcn.ops.cpu_blocks import padded
from lcn.ops.cpu_plan import check_range, list_rows, on_threads, workers
from lcn.ops.cpu_topk import Sorter, make_sorter, select_best
from lcn.ops.cpu_weights import softmax
from lcn.ops.lanes import (
    BROAD,
    LANE,
    WIDTH,
    add_broad,
    copy_broad,
    dot_8_at,
    kernel,
    leaf,
    pool_16_at,
    pool_64_at,
)
from lcn.ops.projected import ProjectedRows


class _Task(NamedTuple):
    row_TY: np.ndarray
    """Key and value of each row."""
    row_L: np.ndarray
    """Listed rows, candidates one after the other."""
    span_C2: np.ndarray
    query_CB: np.ndarray
    heads: int


class _Scratch(NamedTuple):
    place_R: np.ndarray
    """Addresses of a candidate's rows."""
    score_R: np.ndarray
    lanes_2L: np.ndarray
    sorter: Sorter


def attend_listed(
    rows: ProjectedRows, kept_CK: Tensor, query_CB: Tensor, heads: int, keep: int
) -> tuple[Tensor, Tensor]:
    """`lcn.ops.projected.attend_listed`, rows read in place."""
    row_L, span_C2 = np.empty(kept_CK.numel(), np.int32), np.empty((len(kept_CK), 2), np.int64)
    count = list_rows(kept_CK.to(torch.int64).contiguous().numpy(), row_L, span_C2)
    row_L = row_L[:count]
    check_range("kept_CK", row_L, len(rows.item_T), "history rows (-1 is an empty slot)")
    query = query_CB.detach().contiguous().numpy()
    task = _Task(_sum_rows(rows), row_L, span_C2, query, heads)
    out_CB, best_CK = torch.zeros(query.shape), torch.empty((len(query), keep), dtype=torch.int64)
    out, best, longest = out_CB.numpy(), best_CK.numpy(), kept_CK.shape[1]
    parts = max(min(workers(), len(query)), 1)
    cut = np.linspace(0, len(query), parts + 1).astype(np.int64).tolist()
    on_threads(lambda n: _attend(task, out, best, longest, cut[n], cut[n + 1]), parts)
    return out_CB, best_CK


def _sum_rows(rows: ProjectedRows) -> np.ndarray:
    """Key and value of every row."""
    item_T = rows.item_T.to(torch.int32).contiguous().numpy()
    code_TE = rows.code_TE.to(torch.int32).contiguous().numpy()
    item_JY, code_VY = rows.item_JY.contiguous().numpy(), rows.code_VY.contiguous().numpy()
    check_range("item_T", item_T, len(item_JY), "projected items")
    check_range("code_TE", code_TE.ravel(), len(code_VY), "projected codes")
    row_TY = np.empty((len(item_T), item_JY.shape[1]), np.float32)
    _add_parts(item_JY, code_VY, item_T, code_TE, row_TY)
    return row_TY


@kernel
def _add_parts(item_JY, code_VY, item_T, code_TE, row_TY):
    size = 4 * row_TY.shape[1]
    items, codes, rows = item_JY.ctypes.data, code_VY.ctypes.data, row_TY.ctypes.data
    for t in range(len(item_T)):
        row, item = rows + size * t, items + size * np.int64(item_T[t])
        for byte in range(0, size, 4 * BROAD):
            copy_broad(row + byte, item + byte)
        for e in range(code_TE.shape[1]):
            code = codes + size * np.int64(code_TE[t, e])
            for byte in range(0, size, 4 * BROAD):
                add_broad(row + byte, code + byte)


@kernel
def _attend(task, out_CB, best_CK, longest, c0, c1):
    high = padded(longest, LANE)
    scratch = _Scratch(
        np.empty(high, np.int64),
        np.empty(high, np.float32),
        np.empty((2, LANE), np.float32),
        make_sorter(longest if best_CK.shape[1] else 0),
    )
    _attend_each(task, out_CB, best_CK, scratch, c0, c1)


@leaf
def _attend_each(task, out_CB, best_CK, scratch, c0, c1):
    size = 4 * task.row_TY.shape[1]
    for c in range(c0, c1):
        start = task.span_C2[c, 0]
        count = task.span_C2[c, 1] - start
        for r in range(count):
            row = np.int64(task.row_L[start + r])
            scratch.place_R[r] = task.row_TY.ctypes.data + size * row
        # What fills up the last lane weighs nothing, but it is read.
        for r in range(count, padded(count, LANE)):
            scratch.place_R[r] = scratch.place_R[0]
        for h in range(task.heads if count else 0):
            _attend_head(task, out_CB, best_CK, scratch, c, h)
        if not count:
            best_CK[c] = -1


@leaf
def _attend_head(task, out_CB, best_CK, scratch, c, h):
    start = task.span_C2[c, 0]
    count, wide = task.span_C2[c, 1] - start, task.query_CB.shape[1]
    high, head = padded(count, LANE), wide // task.heads
    skip = 4 * (wide * c + head * h)
    query, out = task.query_CB.ctypes.data + skip, out_CB.ctypes.data + skip
    place, score = scratch.place_R.ctypes.data, scratch.score_R.ctypes.data
    for r in range(0, high, LANE):
        dot_8_at(place + 8 * r, 4 * head * h, query, score + 4 * r, head)
    if h == 0 and best_CK.shape[1]:
        row_N, score_N = task.row_L[start : start + count], scratch.score_R[:count]
        select_best(score_N, row_N, 0, count, best_CK.shape[1], scratch.sorter, best_CK[c])
    scale = np.float32(1.0) / softmax(scratch.score_R, count, scratch.lanes_2L)
    value, b = 4 * (wide + head * h), 0
    while b + 4 * WIDTH <= head:
        pool_64_at(place, value + 4 * b, score, out + 4 * b, high)
        b += 4 * WIDTH
    while b < head:
        pool_16_at(place, value + 4 * b, score, out + 4 * b, high)
        b += WIDTH
    for b in range(head * h, head * (h + 1)):
        out_CB[c, b] *= scale
