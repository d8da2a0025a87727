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
from lcn.ops.cpu_columns import find_columns, make_row_list, rank_columns
from lcn.ops.cpu_forward import Pooled
from lcn.ops.cpu_plan import on_threads, workers
from lcn.ops.cpu_topk import Sorter, make_sorter, select_best
from lcn.ops.cpu_weights import softmax
from lcn.ops.lanes import LANE, kernel, leaf

_RUN = 1 << 17
"""Floats of a run of scores: half a megabyte."""
_FEWEST = 64
"""Columns below which two products are not worth setting up."""
_PER_ROW = 4
"""Multiplying for a row that no candidate asked for costs about a quarter of looking one up."""


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
    columns = find_columns(task)
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


class _Scratch(NamedTuple):
    score_N: np.ndarray
    place_N: np.ndarray
    """Column of each of a candidate's rows."""
    code_EN: np.ndarray
    """Their codes, after the columns: where code v's weight is added up in `sum_4X`."""
    sum_4X: np.ndarray
    """Weights by column and code. Neighbouring rows often share one, and a sum in memory takes
    some ten cycles before the next can be added, so there are four of each."""
    lanes_2L: np.ndarray
    sorter: Sorter
    row_K: np.ndarray


@kernel
def _weigh_run(task, out, columns, score_QJ, first, c0, c1):
    """Turn the scores of candidates c0 to c1 - 1 into weights in place; `first` is row 0's."""
    wide, codes, keep = score_QJ.shape[1], columns.code_TE.shape[1], out.kept_CK.shape[1]
    longest = wide
    for c in range(c0, c1):
        longest = max(longest, task.span_C2[c, 1] - task.span_C2[c, 0])
    listed = longest if task.listed or task.bias_QV.shape[1] else 0
    scratch = _Scratch(
        np.empty(padded(longest, LANE), np.float32),
        np.empty(listed, np.int32),
        np.empty((codes, listed), np.int32),
        np.zeros((4, wide + task.bias_QV.shape[1]), np.float32),
        np.empty((2, LANE), np.float32),
        make_sorter(longest if keep else 0),
        make_row_list(longest if keep else 0, keep),
    )
    _weigh(task, out, columns, score_QJ, first, c0, c1, scratch)


@leaf
def _weigh(task, out, columns, score_QJ, first, c0, c1, scratch):
    plain = task.bias_QV.shape[1] == 0 and not task.listed
    for c in range(c0, c1):
        for h in range(task.heads):
            q = c * task.heads + h
            score_J = score_QJ[q - first * task.heads]
            kept_K = out.kept_CK[c] if h == 0 else out.kept_CK[c, :0]
            if plain:
                _weigh_columns(task, columns, c, score_J, scratch, kept_K)
            else:
                _weigh_rows(task, out, columns, q, score_J, scratch, kept_K)


@leaf
def _linear(norm, live):
    """The factor of weights that are scores of `live` rows."""
    return np.float32(1.0 / max(live, 1)) if norm == MEAN else np.float32(1.0)


@leaf
def _weigh_columns(task, columns, c, score_J, scratch, kept_K):
    """Weights of a span without codes: rows of one column weigh the same."""
    start = task.span_C2[c, 0]
    count = task.span_C2[c, 1] - start
    score_N, wide, norm = scratch.score_N, len(score_J), task.norm
    if len(kept_K) and len(columns.row_N) == 0:
        _keep(task, columns, score_J, start, count, scratch, kept_K)
    for j in range(wide):
        score_N[j] = score_J[j] if columns.count_J[j] else -np.inf
    if len(kept_K) and len(columns.row_N):
        sorter, row_K = scratch.sorter, scratch.row_K
        ranked = rank_columns(columns, score_N[:wide], sorter, row_K, kept_K)
        if not ranked:
            _keep(task, columns, score_J, start, count, scratch, kept_K)
            for j in range(wide):
                score_N[j] = score_J[j] if columns.count_J[j] else -np.inf
    scale, total = _linear(norm, count), np.float32(0.0)
    if norm == SOFTMAX:
        softmax(score_N, wide, scratch.lanes_2L)
    for j in range(wide):
        live = np.float32(columns.count_J[j])
        weight = score_N[j] * live if live else np.float32(0.0)
        score_J[j] = weight
        total += weight
    if norm == SOFTMAX:
        scale = np.float32(1.0) / max(total, np.float32(1e-30))
    for j in range(wide):
        score_J[j] *= scale


@leaf
def _keep(task, columns, score_J, start, count, scratch, kept_K):
    """Keep the best rows of a span without codes."""
    score_N = scratch.score_N
    for n in range(count):
        score_N[n] = score_J[columns.place_T[start - columns.first + n]]
    select_best(score_N, task.row_L[:0], start, count, len(kept_K), scratch.sorter, kept_K)


@leaf
def _look_up(task, columns, q, score_J, scratch):
    """Scores of one candidate's rows: the product's column and the biases of the row's codes.

    Returns:
        The candidate's first row, or place in the list of rows, and how many there are.
    """
    start = task.span_C2[q // task.heads, 0]
    count = task.span_C2[q // task.heads, 1] - start
    score_N, place_N, bias_V, wide = scratch.score_N, scratch.place_N, task.bias_QV[q], len(score_J)
    for n in range(count):
        t = np.int64(task.row_L[start + n] if task.listed else start + n) - columns.first
        place_N[n] = columns.place_T[t]
        score_N[n] = score_J[place_N[n]]
    for e in range(columns.code_TE.shape[1]):
        code_N = scratch.code_EN[e]
        for n in range(count):
            t = np.int64(task.row_L[start + n] if task.listed else start + n) - columns.first
            code = columns.code_TE[t, e]
            score_N[n] += bias_V[code]
            code_N[n] = wide + code
    return start, count


@leaf
def _weigh_rows(task, out, columns, q, score_J, scratch, kept_K):
    """Weights of rows, added up by column and by code."""
    score_N = scratch.score_N
    start, count = _look_up(task, columns, q, score_J, scratch)
    if len(kept_K):
        row_N = task.row_L[start : start + count] if task.listed else task.row_L[:0]
        select_best(score_N[:count], row_N, start, count, len(kept_K), scratch.sorter, kept_K)
    scale = _linear(task.norm, count)
    if task.norm == SOFTMAX:
        scale = np.float32(1.0) / softmax(score_N, count, scratch.lanes_2L)
    sum_4X, place_N, wide = scratch.sum_4X, scratch.place_N, len(score_J)
    for n in range(count):
        sum_4X[n & 3, place_N[n]] += score_N[n]
    for e in range(columns.code_TE.shape[1]):
        code_N = scratch.code_EN[e]
        for n in range(count):
            sum_4X[n & 3, code_N[n]] += score_N[n]
    _take_sums(sum_4X, 0, scale, score_J)
    _take_sums(sum_4X, wide, scale, out.weight_QV[q])


@leaf
def _take_sums(sum_4X, first, scale, total_X):
    """Add the four sums up and clear them."""
    for x in range(len(total_X)):
        place = first + x
        low, high = sum_4X[0, place] + sum_4X[1, place], sum_4X[2, place] + sum_4X[3, place]
        total_X[x] = (low + high) * scale
    for part in range(4):
        for x in range(first, first + len(total_X)):
            sum_4X[part, x] = np.float32(0.0)
