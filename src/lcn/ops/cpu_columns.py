"""Columns of a product of matrices: which one each history row reads, and the best rows by them.

Shapes: J columns (distinct items, or the rows of the span where those are fewer), T history rows,
E codes of a row (its recency last), K kept rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lcn.ops.cpu_blocks import Task, padded
from lcn.ops.cpu_topk import LOWEST, STRIDE, collect, middle_key, order_keys, sort_words
from lcn.ops.lane_steps import BOTH, recency_bucket, split_weights
from lcn.ops.lanes import kernel, leaf
from lcn.ops.types import RECENCY_BUCKETS

_TRIES = 12
"""Halvings of a search for the k best: more cost more than sorting what too many would."""


_TOGETHER = 4
"""Rows of a column that are copied without asking how many there are."""


class Columns(NamedTuple):
    """Which column of the product each row reads, and what is multiplied."""

    place_T: np.ndarray
    """Column of row `first + n`."""
    first: int
    vector_JD: np.ndarray
    code_TE: np.ndarray
    """All codes of row `first + n` with its recency's; candidates have the same time."""
    count_J: np.ndarray
    """int32: how many rows of the span read a column, filled up with zeros to whole strides;
    empty where candidates' rows differ."""
    row_N: np.ndarray
    """Rows by column, the latest first, `_TOGETHER` zeros behind; empty where columns are not
    ranked."""
    end_J: np.ndarray
    """Where each column's rows end in `row_N`."""


def find_columns(task: Task) -> Columns:
    """Lay out the columns of a request's one product."""
    lo, hi = (0, len(task.item_T)) if task.listed else task.span_C2[0].tolist()
    fields = task.code_TG.shape[1] if task.bias_QV.shape[1] else 0
    code_TE = np.empty((hi - lo, fields + (len(task.time_C) > 0)), np.int32)
    code_TE[:, :fields] = task.code_TG[lo:hi, :fields]
    if len(task.time_C):
        base = task.bias_QV.shape[1] - RECENCY_BUCKETS
        _find_buckets(task.time_T[lo:hi], task.time_C[0], base, code_TE)
    none, place_T = np.empty(0, np.int32), task.item_T[lo:hi]
    if task.listed:
        return Columns(place_T, lo, task.vector_ID, code_TE, none, none, none)
    if hi - lo < len(task.vector_ID):
        place_T, count_J = np.arange(hi - lo, dtype=np.int32), np.ones(hi - lo, np.int32)
        vector_JD = task.vector_ID[task.item_T[lo:hi]]
        return Columns(place_T, lo, vector_JD, code_TE, _fill_up(count_J), none, none)
    count_J, end_J = np.zeros((2, len(task.vector_ID)), np.int32)
    row_N = np.zeros(hi - lo + _TOGETHER, np.int32)
    _by_column(place_T, lo, count_J, end_J, row_N)
    return Columns(place_T, lo, task.vector_ID, code_TE, _fill_up(count_J), row_N, end_J)


def _fill_up(count_J: np.ndarray) -> np.ndarray:
    return np.pad(count_J, (0, -len(count_J) % STRIDE))


@kernel
def _by_column(place_T, first, count_J, end_J, row_N):
    for place in place_T:
        count_J[place] += 1
    total = 0
    for j in range(len(count_J)):
        end_J[j] = total
        total += count_J[j]
    for t in range(len(place_T) - 1, -1, -1):
        row_N[end_J[place_T[t]]] = first + t
        end_J[place_T[t]] += 1


@kernel
def _find_buckets(time_T, now, base, code_TE):
    last = code_TE.shape[1] - 1
    for t in range(len(time_T)):
        code_TE[t, last] = base + recency_bucket(now - time_T[t], RECENCY_BUCKETS - 1)


@leaf
def _column_threshold(key_J, count_J, bounds, k, ends_2):
    """A key from which on columns have at least k rows, if so many there are, and not many more."""
    groups, few = padded(len(key_J), STRIDE) // BOTH, k + k // 4
    keys, counts, ends = key_J.ctypes.data, count_J.ctypes.data, ends_2.ctypes.data
    low, high = bounds[1], bounds[2]
    found = split_weights(keys, counts, groups, np.int32(LOWEST + 1), ends)
    if found <= k:
        return np.int32(LOWEST + 1)
    for _ in range(_TRIES):
        if low >= high or found <= few:
            break
        middle = np.int32(middle_key(low, high))
        here = split_weights(keys, counts, groups, middle, ends)
        if here >= k:
            low, found = np.int64(ends_2[0]), here
        else:
            high = np.int64(ends_2[1])
    return np.int32(low)


@kernel
def make_row_list(rows, keep):
    """Room for any column's rows after others, and for the answer."""
    return np.empty(2 * rows + keep + _TOGETHER, np.int32)


@leaf
def rank_columns(columns, score_J, sorter, row_K, kept_K):
    """Keep the best rows by ranking columns, whose rows are equal where there are no codes.

    `score_J` is -inf where a column has no rows; `row_K` is scratch from `make_row_list`.

    Returns:
        False where two columns tie, whose rows would have to be merged; nothing is kept then.
    """
    key_J, word_N = sorter.key_N[: len(score_J)], sorter.word_N
    bounds = order_keys(score_J, len(score_J), sorter.key_N)
    low = _column_threshold(key_J, columns.count_J, bounds, len(kept_K), sorter.ends_2)
    found = collect(sorter.key_N, len(score_J), low, columns.row_N[:0], 0, word_N)
    if found:
        sort_words(word_N, found, sorter)
    filled, keep = 0, len(kept_K)
    for place in range(found - 1, -1, -1):
        if filled >= keep:
            break
        if place and word_N[place - 1] >> 32 == word_N[place] >> 32:
            return False
        j = word_N[place] & 0xFFFFFFFF
        count = np.int64(columns.count_J[j])
        start = np.int64(columns.end_J[j]) - count
        for n in range(_TOGETHER):
            row_K[filled + n] = columns.row_N[start + n]
        for n in range(_TOGETHER, count):
            row_K[filled + n] = columns.row_N[start + n]
        filled += count
    for k in range(keep):
        kept_K[k] = row_K[k] if k < filled else -1
    return True
