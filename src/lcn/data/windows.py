"""Merging candidates' spans into windows: which event rows a batch reads, each of them once.

Compiled with numba and free of the interpreter lock, so that a loader thread collates while the
trainer computes.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def merge_windows(
    start_C: NDArray[np.int64], end_C: NDArray[np.int64], user_of_C: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lay the union of each user's spans out as consecutive batch rows.

    Spans of one user that overlap or touch share their rows; a gap between two spans is left
    out. Candidates must be ordered by (user, end), which keeps starts ordered too.

    Args:
        start_C: first event row of each span in the store.
        end_C: one past the last.
        user_of_C: user of each candidate, never decreasing.

    Returns:
        run_R2: first and one-past-last store row of each run of batch rows, in their order.
        span_C2: each candidate's span in batch rows.
    """
    run_R2 = np.empty((len(start_C), 2), np.int64)
    span_C2 = np.empty((len(start_C), 2), np.int64)
    runs = _lay_runs(start_C, end_C, user_of_C, run_R2, span_C2)
    return run_R2[:runs], span_C2


@numba.njit(cache=True, nogil=True)
def _lay_runs(start_C, end_C, user_of_C, run_R2, span_C2):
    runs, filled, covered, user = 0, np.int64(0), np.int64(0), np.int64(-1)
    for c in range(len(start_C)):
        first, same = start_C[c], user_of_C[c] == user
        if same:
            first = max(first, covered)
        if end_C[c] > first:
            if same and runs and run_R2[runs - 1, 1] == first:
                run_R2[runs - 1, 1] = end_C[c]
            else:
                run_R2[runs, 0], run_R2[runs, 1] = first, end_C[c]
                runs += 1
            filled += end_C[c] - first
        covered = max(end_C[c], covered) if same else end_C[c]
        user = user_of_C[c]
        # Ends are ordered within a user, so a span is always the newest rows laid so far.
        span_C2[c, 1] = filled
        span_C2[c, 0] = filled - (end_C[c] - start_C[c])
    return runs


class UniqueItems:
    """Numbers the distinct items of a batch in O(rows) time; one per loader thread.

    `position` is scratch over all item addresses, never cleared: a batch reads only what it wrote.
    """

    def __init__(self, items: int) -> None:
        self._seen = np.zeros(items, np.bool_)
        self._position = np.zeros(items, np.int32)

    def number(
        self, *address: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], list[NDArray[np.int32]]]:
        """Return the distinct addresses, ascending, and each input as positions among them."""
        for column in address:
            _mark(column, self._seen)
        unique = np.flatnonzero(self._seen)
        _assign(unique, self._seen, self._position)
        return unique, [_translate(column, self._position) for column in address]


@numba.njit(cache=True, nogil=True)
def _mark(address, seen):
    for a in address:
        seen[a] = True


@numba.njit(cache=True, nogil=True)
def _assign(unique, seen, position):
    for index in range(len(unique)):
        position[unique[index]] = index
        seen[unique[index]] = False


@numba.njit(cache=True, nogil=True)
def _translate(address, position):
    out = np.empty(len(address), np.int32)
    for index in range(len(address)):
        out[index] = position[address[index]]
    return out


@numba.njit(cache=True, nogil=True)
def take_runs(column: NDArray[Any], run_R2: NDArray[np.int64]) -> NDArray[Any]:
    """Copy runs of a column one after the other, without the interpreter lock while pages are
    read."""
    total = 0
    for r in range(len(run_R2)):
        total += run_R2[r, 1] - run_R2[r, 0]
    out = np.empty((total, *column.shape[1:]), column.dtype)
    filled = 0
    for r in range(len(run_R2)):
        first, last = run_R2[r, 0], run_R2[r, 1]
        out[filled : filled + last - first] = column[first:last]
        filled += last - first
    return out
