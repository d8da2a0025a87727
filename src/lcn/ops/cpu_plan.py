"""Cut a batch into tiles, check its indices, and run kernels on several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from lcn.ops.cpu_backward import width_of
from lcn.ops.cpu_blocks import MAX_COLUMNS, ROWS, Task, padded
from lcn.ops.lanes import kernel

_BUFFER = 1 << 20
"""Floats per worker that one step of the backward hands to the next: 4 MB."""
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """Drop the pool in a forked child, where its threads do not exist."""
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def on_threads(work: Callable[[int], object], count: int) -> None:
    """Run work(0) to work(count - 1) side by side, the first one on the calling thread."""
    global _pool, _pool_size
    if count > 1 and _pool_size < count - 1:
        _pool, _pool_size = ThreadPoolExecutor(count - 1, "lcn-ops"), count - 1
    others = [_pool.submit(work, n) for n in range(1, count)] if _pool and count > 1 else []
    try:
        if count:
            work(0)
    finally:
        # Kernels write into memory that lives only as long as the caller waits.
        for other in others:
            other.exception()
    for other in others:
        other.result()


@kernel
def _plan(span_C2, heads, tile_N4):
    tiles, c = 0, 0
    while c < len(span_C2):
        lo, hi = span_C2[c, 0], span_C2[c, 1]
        if hi <= lo:
            lo, hi = 0, 0
        rows, end = hi - lo, c + 1
        while end < len(span_C2) and (end + 1 - c) * heads <= MAX_COLUMNS:
            start, stop = span_C2[end, 0], span_C2[end, 1]
            # Without overlap a union would hold rows that no candidate reads.
            if stop <= start or start >= hi or stop <= lo:
                break
            union = max(hi, stop) - min(lo, start)
            # A candidate pays for rows outside its span; a third of the tile at most.
            if 2 * union * (end + 1 - c) > 3 * (rows + stop - start):
                break
            lo, hi, rows, end = min(lo, start), max(hi, stop), rows + stop - start, end + 1
        tile_N4[tiles, 0], tile_N4[tiles, 1], tile_N4[tiles, 2], tile_N4[tiles, 3] = c, end, lo, hi
        tiles, c = tiles + 1, end
    return tiles


@kernel
def _cost(tile_N4, heads, cost_N, size_N):
    """Relative time of each tile and the floats it leaves for the second step of the backward."""
    for n in range(len(tile_N4)):
        rows, columns = tile_N4[n, 3] - tile_N4[n, 2], (tile_N4[n, 1] - tile_N4[n, 0]) * heads
        cost_N[n] = rows * (columns + 2) + 16 * columns
        tile = (tile_N4[n, 0], tile_N4[n, 1], tile_N4[n, 2], tile_N4[n, 3])
        size_N[n] = padded(rows, ROWS) * width_of(tile, heads)


class Tiles:
    """The tiles of a batch and where to cut them."""

    def __init__(self, span_C2: np.ndarray, heads: int) -> None:
        tile_N4 = np.empty((len(span_C2), 4), np.int64)
        self.tile_N4 = tile_N4[: _plan(span_C2, heads, tile_N4)]
        self._cost_N = np.empty(len(self.tile_N4), np.int64)
        self._size_N = np.empty(len(self.tile_N4), np.int64)
        _cost(self.tile_N4, heads, self._cost_N, self._size_N)

    def shares(self, start: int, stop: int, workers: int) -> list[tuple[int, int]]:
        """Cut tiles start to stop - 1 into at most `workers` runs of about equal cost."""
        total_N = np.cumsum(self._cost_N[start:stop])
        if not len(total_N):
            return []
        ideal = total_N[-1] * np.arange(1, workers) / workers
        cuts = [0, *np.searchsorted(total_N, ideal, side="right").tolist(), stop - start]
        return [(start + a, start + b) for a, b in pairwise(cuts) if b > a]

    def steps(self, workers: int) -> Iterator[tuple[int, int]]:
        """Runs of tiles whose buffers fit together; a tile that is too big comes alone."""
        start = 0
        while start < len(self._size_N):
            total_N = np.cumsum(self._size_N[start:])
            stop = start + max(int(np.searchsorted(total_N, _BUFFER * workers, side="right")), 1)
            yield start, stop
            start = stop

    def starts(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        """Place of each tile's buffer within a step (by tile number), and the step's size."""
        start_N = np.zeros(len(self._size_N), np.int64)
        total_N = np.cumsum(self._size_N[start:stop])
        start_N[start + 1 : stop] = total_N[:-1]
        return start_N, int(total_N[-1])


def workers() -> int:
    """As many threads as PyTorch uses."""
    return torch.get_num_threads()


@kernel
def list_rows(kept_CK, row_L, span_C2):
    """Lay kept rows out without the empty slots; returns how many there are."""
    filled = 0
    for c in range(len(kept_CK)):
        span_C2[c, 0] = filled
        for k in range(kept_CK.shape[1]):
            if kept_CK[c, k] >= 0:
                row_L[filled] = kept_CK[c, k]
                filled += 1
        span_C2[c, 1] = filled
    return filled


@kernel
def _in_range(index_N, count):
    low, high = np.int32(0), np.int32(-1)
    for n in range(len(index_N)):
        low = min(low, index_N[n])
        high = max(high, index_N[n])
    return low >= 0 and high < count


def check_range(name: str, index_N: np.ndarray, count: int, what: str) -> None:
    """Check int32 indices.

    Raises:
        IndexError: one points outside its table of `count` rows.
    """
    if not _in_range(index_N, count):
        raise IndexError(
            f"{name} holds indices from {index_N.min()} to {index_N.max()}, "
            f"expected 0 to {count - 1}: there are {count} {what}"
        )


def check(task: Task) -> None:
    """Kernels do not look where they read, so indices are checked once, in the forward.

    Raises:
        IndexError: an item, a code, a row or a span points outside its table.
    """
    rows = len(task.item_T)
    tables = (
        ("item_T", task.item_T, len(task.vector_ID), "rows of vector_ID"),
        ("code_TG", task.code_TG.ravel(), task.bias_QV.shape[1], "columns of bias_CHV"),
        ("kept_CK", task.row_L, rows, "history rows (-1 is an empty slot)"),
    )
    for name, index_N, count, what in tables:
        check_range(name, index_N, count, what)
    full = task.span_C2[task.span_C2[:, 1] > task.span_C2[:, 0]]
    limit = len(task.row_L) if task.listed else rows
    if len(full) and (full.min() < 0 or full.max() > limit):
        raise IndexError(
            f"span_C2 reaches from {full.min()} to {full.max()}, expected 0 to {limit}: "
            f"there are {limit} history rows"
        )
