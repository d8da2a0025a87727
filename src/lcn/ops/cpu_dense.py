"""One user, many candidates, no gradient: what a request costs when scores are matrix products.

The blocked kernels pay for each tile and have eight columns at a time; here all candidates score
all of the user's distinct items in one product of two matrices. What is left per row is a lookup,
the biases of its codes and a weight, and pooling is a second product. Candidates are taken in runs
whose scores stay in the second-level cache.

Shapes: J columns of a product (distinct items, or the rows of the span where those are fewer), T
history rows, C candidates, Q (candidate, head) pairs, V context codes, N rows of one candidate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from lcn.ops.cpu_blocks import MEAN, SOFTMAX, Task, padded
from lcn.ops.cpu_forward import Pooled
from lcn.ops.cpu_plan import on_threads, workers
from lcn.ops.cpu_topk import Sorter, make_sorter, select_best
from lcn.ops.lane_steps import exp_lanes, max_lanes, recency_bucket
from lcn.ops.lanes import LANE, kernel, leaf
from lcn.ops.types import RECENCY_BUCKETS

_RUN = 1 << 17
"""Floats of a run of scores: half a megabyte."""
_FEWEST = 64
"""Columns below which two products are not worth setting up."""
_PER_ROW = 4
"""Multiplying for a row that no candidate asked for costs about a quarter of looking one up."""


class _Columns(NamedTuple):
    """Which column of the product each row reads, and what is multiplied."""

    place_T: np.ndarray
    """Column of row `first + n`."""
    first: int
    vector_JD: np.ndarray
    count_J: np.ndarray
    """How many rows of the span read a column; empty where candidates' rows differ."""
    bucket_T: np.ndarray
    """Recency bucket of each row, all candidates having the same time."""
    row_N: np.ndarray
    """Rows by column, the latest first; empty where columns are not ranked."""
    end_J: np.ndarray
    """Where each column's rows end in `row_N`."""


def fits(task: Task) -> bool:
    """Whether all candidates are of one request and products cost less than lookups."""
    candidates, span = len(task.span_C2), task.span_C2
    if candidates * task.heads < _FEWEST:
        return False
    if len(task.time_C) and not bool((task.time_C == task.time_C[0]).all()):
        return False
    if task.listed:
        return 0 < len(task.vector_ID) * candidates <= _PER_ROW * len(task.row_L)
    plain = not task.bias_QV.shape[1]
    return plain and span[0, 1] > span[0, 0] and bool((span == span[0]).all())


def forward(task: Task, out: Pooled) -> None:
    """`forward_tiles` for a task that `fits`."""
    columns = _columns(task)
    vector_JD = torch.from_numpy(columns.vector_JD)
    pooled_QD = torch.from_numpy(out.vector_QD)
    query_QD = torch.from_numpy(task.query_QD)
    wide, candidates = len(vector_JD), len(task.span_C2)
    run = max(_RUN // (wide * task.heads), 1)
    score = torch.empty(min(run, candidates) * task.heads, wide)
    for c0 in range(0, candidates, run):
        c1 = min(c0 + run, candidates)
        part = slice(c0 * task.heads, c1 * task.heads)
        score_QJ = score[: (c1 - c0) * task.heads]
        torch.mm(query_QD[part], vector_JD.T, out=score_QJ)
        weigh = score_QJ.numpy()
        cut = np.linspace(c0, c1, min(workers(), c1 - c0) + 1).astype(np.int64).tolist()
        on_threads(
            lambda n, cut=cut, weigh=weigh, c0=c0: _weigh_run(
                task, out, columns, weigh, c0, cut[n], cut[n + 1]
            ),
            len(cut) - 1,
        )
        torch.mm(score_QJ, vector_JD, out=pooled_QD[part])


def _columns(task: Task) -> _Columns:
    lo, hi = (0, len(task.item_T)) if task.listed else task.span_C2[0].tolist()
    bucket_T = np.empty(0, np.int32)
    if len(task.time_C):
        bucket_T = np.empty(hi - lo, np.int32)
        _find_buckets(task.time_T[lo:hi], task.time_C[0], bucket_T)
    none, place_T = np.empty(0, np.int32), task.item_T[lo:hi]
    count_J = np.empty(0, np.float32)
    if task.listed:
        return _Columns(place_T, lo, task.vector_ID, count_J, bucket_T, none, none)
    if hi - lo < len(task.vector_ID):
        place_T, count_J = np.arange(hi - lo, dtype=np.int32), np.ones(hi - lo, np.float32)
        vector_JD = task.vector_ID[task.item_T[lo:hi]]
        return _Columns(place_T, lo, vector_JD, count_J, bucket_T, none, none)
    count_J = np.bincount(place_T, minlength=len(task.vector_ID))
    order_N = np.argsort(place_T[::-1], kind="stable")
    row_N, end_J = (hi - 1 - order_N).astype(np.int32), np.cumsum(count_J).astype(np.int32)
    count_J = count_J.astype(np.float32)
    return _Columns(place_T, lo, task.vector_ID, count_J, bucket_T, row_N, end_J)


@kernel
def _find_buckets(time_T, now, bucket_T):
    for t in range(len(time_T)):
        bucket_T[t] = recency_bucket(now - time_T[t], RECENCY_BUCKETS - 1)


class _Scratch(NamedTuple):
    score_N: np.ndarray
    lanes_3L: np.ndarray
    sorter: Sorter
    best_K: np.ndarray


@kernel
def _weigh_run(task, out, columns, score_QJ, first, c0, c1):
    """Turn the scores of candidates c0 to c1 - 1 into weights in place; `first` is row 0's."""
    longest = score_QJ.shape[1]
    for c in range(c0, c1):
        longest = max(longest, task.span_C2[c, 1] - task.span_C2[c, 0])
    keep = out.kept_CK.shape[1]
    scratch = _Scratch(
        np.empty(padded(longest, LANE), np.float32),
        np.empty((3, LANE), np.float32),
        make_sorter(longest if keep else 0),
        np.empty(min(keep, score_QJ.shape[1]), np.int64),
    )
    _weigh(task, out, columns, score_QJ, first, c0, c1, scratch)


@leaf
def _weigh(task, out, columns, score_QJ, first, c0, c1, scratch):
    codes, keep = task.bias_QV.shape[1], out.kept_CK.shape[1]
    plain = codes == 0 and not task.listed
    for c in range(c0, c1):
        start = task.span_C2[c, 0]
        count = task.span_C2[c, 1] - start
        for h in range(task.heads):
            q = c * task.heads + h
            score_J = score_QJ[q - first * task.heads]
            ranked = keep and h == 0 and len(columns.row_N) > 0
            if ranked:
                ranked = _rank_columns(columns, score_J, scratch, out.kept_CK[c])
            if not plain or (keep and h == 0 and not ranked):
                _look_up(task, columns, q, score_J, start, count, scratch.score_N)
            if keep and h == 0 and not ranked:
                row_N = task.row_L[start : start + count] if task.listed else task.row_L[:0]
                score_N = scratch.score_N[:count]
                select_best(score_N, row_N, start, count, keep, scratch.sorter, out.kept_CK[c])
            if plain:
                _weigh_columns(task.norm, columns, score_J, count, scratch)
            else:
                _weigh_rows(task, out, columns, q, score_J, start, count, scratch)


@leaf
def _rank_columns(columns, score_J, scratch, kept_K):
    """Keep the best rows by ranking items, whose rows are equal where there are no codes.

    Returns:
        False where two items tie, whose rows would have to be merged; nothing is kept then.
    """
    score_N, best_K, wide = scratch.score_N, scratch.best_K, len(score_J)
    for j in range(wide):
        score_N[j] = score_J[j] if columns.count_J[j] else -np.inf
    select_best(score_N, columns.row_N[:0], 0, wide, len(best_K), scratch.sorter, best_K)
    filled = 0
    for k in range(len(best_K)):
        j = best_K[k]
        if j < 0:
            break
        if k and score_N[j] == score_N[best_K[k - 1]]:
            return False
        if filled == len(kept_K):
            break
        end = columns.end_J[j]
        for n in range(end - np.int64(columns.count_J[j]), end):
            if filled < len(kept_K):
                kept_K[filled] = columns.row_N[n]
                filled += 1
    # What the last row taken ties with among the items left out shows in the next best item.
    if len(best_K) < wide and filled == len(kept_K) and best_K[len(best_K) - 1] >= 0:
        last = score_N[best_K[len(best_K) - 1]]
        for j in range(wide):
            if score_N[j] == last and j != best_K[len(best_K) - 1]:
                return False
    for k in range(filled, len(kept_K)):
        kept_K[k] = -1
    return True


@leaf
def _look_up(task, columns, q, score_J, start, count, score_N):
    """Scores of one candidate's rows: the product's column and the biases of the row's codes."""
    base = task.bias_QV.shape[1] - RECENCY_BUCKETS
    bias_V = task.bias_QV[q]
    for n in range(count):
        t = task.row_L[start + n] if task.listed else np.int32(start + n)
        score_N[n] = score_J[columns.place_T[t - columns.first]]
    for g in range(task.code_TG.shape[1] if task.bias_QV.shape[1] else 0):
        for n in range(count):
            t = task.row_L[start + n] if task.listed else np.int32(start + n)
            score_N[n] += bias_V[task.code_TG[t, g]]
    if len(task.time_C):
        for n in range(count):
            t = task.row_L[start + n] if task.listed else np.int32(start + n)
            score_N[n] += bias_V[base + columns.bucket_T[t - columns.first]]


@leaf
def _weights(norm, score_N, count, live, lanes_3L):
    """Turn scores into unscaled weights in place; returns the factor and, for softmax, their sum.

    `live` is the number of rows that the scores stand for.
    """
    if norm != SOFTMAX:
        return np.float32(1.0 / max(live, 1)) if norm == MEAN else np.float32(1.0)
    top, total = lanes_3L[0].ctypes.data, lanes_3L[1].ctypes.data
    for n in range(LANE):
        lanes_3L[0, n] = -np.inf
    for n in range(count, padded(count, LANE)):
        score_N[n] = -np.inf
    groups, score = padded(count, LANE) // LANE, score_N.ctypes.data
    max_lanes(score, 4 * LANE, groups, top)
    highest = lanes_3L[0, 0]
    for n in range(LANE):
        highest = max(highest, lanes_3L[0, n])
    for n in range(LANE):
        lanes_3L[0, n] = highest
    exp_lanes(score, 4 * LANE, groups, top, total)
    return np.float32(1.0)


@leaf
def _weigh_columns(norm, columns, score_J, count, scratch):
    """Weights of a span without codes: rows of one column weigh the same."""
    score_N, wide = scratch.score_N, len(score_J)
    for j in range(wide):
        score_N[j] = score_J[j] if columns.count_J[j] else -np.inf
    scale = _weights(norm, score_N, wide, count, scratch.lanes_3L)
    total = np.float32(0.0)
    for j in range(wide):
        weight = score_N[j] * columns.count_J[j] if columns.count_J[j] else np.float32(0.0)
        score_J[j] = weight
        total += weight
    if norm == SOFTMAX:
        scale = np.float32(1.0) / max(total, np.float32(1e-30))
    for j in range(wide):
        score_J[j] *= scale


@leaf
def _weigh_rows(task, out, columns, q, score_J, start, count, scratch):
    """Weights of rows, added up by column and by code."""
    score_N, weight_V = scratch.score_N, out.weight_QV[q]
    codes = len(weight_V)
    scale = _weights(task.norm, score_N, count, count, scratch.lanes_3L)
    if task.norm == SOFTMAX:
        total = np.float32(0.0)
        for n in range(LANE):
            total += scratch.lanes_3L[1, n]
        scale = np.float32(1.0) / max(total, np.float32(1e-30))
    for j in range(len(score_J)):
        score_J[j] = np.float32(0.0)
    for v in range(codes):
        weight_V[v] = np.float32(0.0)
    for n in range(count):
        t = task.row_L[start + n] if task.listed else np.int32(start + n)
        weight = score_N[n] * scale
        score_N[n] = weight
        score_J[columns.place_T[t - columns.first]] += weight
    for g in range(task.code_TG.shape[1] if codes else 0):
        for n in range(count):
            t = task.row_L[start + n] if task.listed else np.int32(start + n)
            weight_V[task.code_TG[t, g]] += score_N[n]
    if len(task.time_C):
        base = codes - RECENCY_BUCKETS
        for n in range(count):
            t = task.row_L[start + n] if task.listed else np.int32(start + n)
            weight_V[base + columns.bucket_T[t - columns.first]] += score_N[n]
