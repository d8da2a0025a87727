"""Compiled forms of the ops on codes and of merging heads; see `lcn.ops.simhash`.

Distances are small integers, so the nearest rows come from one counting sort per candidate. Bucket
sums compare eight groups at once and touch a vector only where it collides. Their backward divides
the columns of the vectors among threads, so that none writes where another does and the result
does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from lcn.ops.cpu_plan import on_threads, workers
from lcn.ops.lanes import kernel, leaf

if TYPE_CHECKING:
    from lcn.ops.simhash import Codes, Measure

_BITS, _BYTES, _WHOLE = 0, 1, 2
_MEASURE = {"bits": _BITS, "bytes": _BYTES, "whole": _WHOLE}


class CodeTask(NamedTuple):
    """What all kernels read."""

    code_I: np.ndarray
    """[I, Y] bytes, or [I, W] words of eight of them."""
    item_T: np.ndarray
    query_C: np.ndarray
    """As `code_I`."""
    span_C2: np.ndarray


def code_topk(codes: Codes, span_C2: Tensor, keep: int, measure: Measure, farthest: int) -> Tensor:
    """`lcn.ops.simhash.code_topk` by counting sort."""
    task = code_task(codes, span_C2)
    kept_CK = torch.full((len(task.span_C2), keep), -1, dtype=torch.int64)
    kept = kept_CK.numpy()
    how = _MEASURE[measure]
    over_candidates(task.span_C2, lambda a, b: _nearest(task, how, farthest, kept, a, b))
    return kept_CK


def code_distance(codes: Codes, span_C2: Tensor, measure: Measure) -> Tensor:
    """`lcn.ops.simhash.code_distance`, without padding."""
    task = code_task(codes, span_C2)
    length_C = task.span_C2[:, 1] - task.span_C2[:, 0]
    offset_C = np.r_[0, np.cumsum(np.maximum(length_C, 0))]
    distance_S = np.empty(offset_C[-1], np.int32)
    how = _MEASURE[measure]
    over_candidates(task.span_C2, lambda a, b: _distances(task, how, offset_C, distance_S, a, b))
    return torch.from_numpy(distance_S.astype(np.int64))


def merge_heads(kept_CHK: Tensor, mean_CHK: Tensor, keep: int) -> Tensor:
    """`lcn.ops.merge_heads.merge_heads`, one walk per candidate."""
    kept = torch.full((len(kept_CHK), keep), -1, dtype=torch.int64)
    rows = kept_CHK.to(torch.int64).contiguous().numpy()
    mean = mean_CHK.to(torch.float64).contiguous().numpy()
    _merge(rows, mean, kept.numpy())
    return kept


def code_task(codes: Codes, span_C2: Tensor) -> CodeTask:
    """The op's integers as contiguous arrays, checked once: kernels do not look.

    Raises:
        IndexError: an item or a span points outside its table.
    """
    code, query = codes.code_IY.contiguous().numpy(), codes.query_CY.contiguous().numpy()
    item = codes.item_T.to(torch.int32).contiguous().numpy()
    span = span_C2.to(torch.int64).contiguous().numpy()
    if len(item) and (item.min() < 0 or item.max() >= len(code)):
        raise IndexError(
            f"item_T holds indices from {item.min()} to {item.max()}, expected 0 to "
            f"{len(code) - 1}: there are {len(code)} codes"
        )
    full = span[span[:, 1] > span[:, 0]]
    if len(full) and (full.min() < 0 or full.max() > len(item)):
        raise IndexError(
            f"span_C2 reaches from {full.min()} to {full.max()}, expected 0 to {len(item)}: "
            f"there are {len(item)} history rows"
        )
    if code.shape[1] != query.shape[1]:
        raise ValueError(f"codes have {code.shape[1]} bytes, candidates' {query.shape[1]}")
    return CodeTask(code, item, query, span)


def over_candidates(span: np.ndarray, work: Callable[[int, int], object]) -> None:
    """Run `work(first, last)` on runs of candidates with about equally many rows."""
    total_C = np.cumsum(np.maximum(span[:, 1] - span[:, 0], 0) + 8)
    if not len(total_C):
        return
    ideal = total_C[-1] * np.arange(1, workers()) / workers()
    cut = [0, *np.searchsorted(total_C, ideal).tolist(), len(span)]
    on_threads(lambda n: work(cut[n], cut[n + 1]), len(cut) - 1)


@intrinsic
def _ones(context, word):
    """Count the bits that are set."""

    def build(_, builder, signature, args):
        return builder.ctpop(args[0])

    return types.uint8(types.uint8), build


@leaf
def _fill(task, measure, query_Y, start, stop, out_N):
    """Write the distances of rows start to stop - 1."""
    width = len(query_Y)
    for t in range(start, stop):
        item = task.item_T[t]
        distance = np.int32(0)
        if measure == _BITS:
            for y in range(width):
                distance += np.int32(_ones(np.uint8(task.code_I[item, y] ^ query_Y[y])))
        else:
            for y in range(width):
                distance += np.int32(task.code_I[item, y] != query_Y[y])
            if measure == _WHOLE:
                distance = min(distance, np.int32(1))
        out_N[t - start] = distance


@leaf
def _distances(task, measure, offset_C, distance_S, c0, c1):
    for c in range(c0, c1):
        start = task.span_C2[c, 0]
        stop = max(task.span_C2[c, 1], start)
        out = distance_S[offset_C[c] : offset_C[c] + stop - start]
        _fill(task, measure, task.query_C[c], start, stop, out)


@kernel
def _nearest(task, measure, farthest, kept_CK, c0, c1):
    longest = 0
    for c in range(c0, c1):
        longest = max(longest, task.span_C2[c, 1] - task.span_C2[c, 0])
    distance_N = np.empty(longest, np.int32)
    place_D = np.empty(farthest + 2, np.int64)
    keep = kept_CK.shape[1]
    for c in range(c0, c1):
        start = task.span_C2[c, 0]
        stop = max(task.span_C2[c, 1], start)
        _fill(task, measure, task.query_C[c], start, stop, distance_N)
        place_D[:] = 0
        for n in range(stop - start):
            if distance_N[n] <= farthest:
                place_D[distance_N[n] + 1] += 1
        for d in range(farthest + 1):
            place_D[d + 1] += place_D[d]
        # place_D[d] is now where rows at distance d begin; later rows come first.
        for n in range(stop - start - 1, -1, -1):
            d = distance_N[n]
            if d <= farthest:
                if place_D[d] < keep:
                    kept_CK[c, place_D[d]] = start + n
                place_D[d] += 1


@kernel
def _merge(rows_CHK, mean_CHK, kept_CK):
    heads, ranks = rows_CHK.shape[1], rows_CHK.shape[2]
    keep = kept_CK.shape[1]
    used_H = np.empty(heads, np.bool_)
    for c in range(len(rows_CHK)):
        found = 0
        for k in range(ranks):
            if found >= keep:
                break
            used_H[:] = False
            for _ in range(heads):
                best = -1
                for h in range(heads):
                    row = rows_CHK[c, h, k]
                    if used_H[h] or row < 0:
                        continue
                    better = best < 0 or mean_CHK[c, h, k] > mean_CHK[c, best, k]
                    tied = best >= 0 and mean_CHK[c, h, k] == mean_CHK[c, best, k]
                    if better or (tied and row > rows_CHK[c, best, k]):
                        best = h
                if best < 0:
                    break
                used_H[best] = True
                row, seen = rows_CHK[c, best, k], False
                for place in range(found):
                    seen |= kept_CK[c, place] == row
                if not seen and found < keep:
                    kept_CK[c, found] = row
                    found += 1
