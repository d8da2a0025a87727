"""Top-k of spans by threshold: no sort of a history, no padded copy of its scores.

One program per candidate finds the k-th highest score bit by bit (32 counts over the span's
scores, which stay in cache), writes the rows above it and the latest of those equal to it, and
leaves the ordering of k numbers to a sort of [C, K].
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
"""Scores that one program looks at at once, at most."""
_EMPTY = torch.iinfo(torch.int64).min
_LEAST = tl.constexpr(-(2**31))
_MINUS_INFINITY = tl.constexpr(-(2**31) + 2**23 - 1)
"""Key of a score of -inf: smaller keys are NaN."""
_INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def _keys(score, n_N, count):
    """Scores as integers in the same order: signed zeros tie; what is no row, -inf or NaN is last.

    Integers, because a comparison of floats may flush the smallest to zero.
    """
    score_N = tl.load(score + n_N, mask=n_N < count, other=-float("inf"))
    bits_N = score_N.to(tl.int32, bitcast=True)
    size_N = bits_N & 0x7FFFFFFF
    key_N = tl.where(bits_N < 0, -1 - size_N, size_N)
    key_N = tl.where(size_N == 0, 0, key_N).to(tl.int64)
    return tl.where((key_N > _MINUS_INFINITY) & (key_N <= _INFINITY), key_N, _LEAST)


@triton.jit
def keep_best(score_S, span_C2, flat_C, best_CK, k, N: tl.constexpr):
    """Write key * 2^32 + place in the span of each kept row, in no order."""
    c = tl.program_id(0)
    count = tl.load(span_C2 + 2 * c + 1) - tl.load(span_C2 + 2 * c)
    score = score_S + tl.load(flat_C + c)
    # The greatest threshold that at least k rows reach, built from the highest bit down.
    threshold = tl.full([], _LEAST, tl.int64)
    for bit in range(32):
        trial = threshold + (tl.full([], 1, tl.int64) << (31 - bit))
        reached = 0
        for first in range(0, count, N):
            key_N = _keys(score, first + tl.arange(0, N), count)
            reached += tl.sum((key_N >= trial).to(tl.int32))
        threshold = tl.where(reached >= k, trial, threshold)
    above, equal = 0, 0
    for first in range(0, count, N):
        key_N = _keys(score, first + tl.arange(0, N), count)
        above += tl.sum((key_N > threshold).to(tl.int32))
        equal += tl.sum((key_N == threshold).to(tl.int32))
    # Ties go to the later row: the first of those equal to the threshold are left out.
    skip = equal - (k - above)
    written, met = 0, 0
    for first in range(0, count, N):
        n_N = first + tl.arange(0, N)
        key_N = _keys(score, n_N, count)
        tie_N = (key_N == threshold).to(tl.int32)
        rank_N = met + tl.cumsum(tie_N, 0)
        kept_N = (key_N > threshold) | ((tie_N > 0) & (rank_N > skip))
        kept_N = kept_N & (key_N > _LEAST)
        slot_N = written + tl.cumsum(kept_N.to(tl.int32), 0) - 1
        packed_N = (key_N << 32) | n_N.to(tl.int64)
        tl.store(best_CK + c.to(tl.int64) * k + slot_N, packed_N, mask=kept_N)
        met += tl.sum(tie_N)
        written += tl.sum(kept_N.to(tl.int32))


def best_places(score_S: Tensor, span_C2: Tensor, flat_C: Tensor, k: int, longest: int) -> Tensor:
    """[C, K] places in each span of its k best scores, best first, -1 in empty slots.

    Args:
        score_S: scores, candidates one after the other from `flat_C` on.
        span_C2: first and one-past-last place.
        flat_C: where each candidate's scores start.
        k: how many to keep.
        longest: rows of the longest span.
    """
    best_CK = torch.full((len(span_C2), k), _EMPTY, dtype=torch.int64, device=score_S.device)
    if longest:
        block = min(max(triton.next_power_of_2(longest), 16), BLOCK)
        keep_best[(len(span_C2),)](score_S, span_C2, flat_C, best_CK, k, N=block)
    best_CK = best_CK.sort(1, descending=True).values
    return torch.where(best_CK == _EMPTY, -1, best_CK & 0xFFFFFFFF)
