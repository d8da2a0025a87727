"""Select the k best of n scores in O(n): find a threshold, collect, sort the few that are left."""

from __future__ import annotations

import numpy as np

from lcn.ops.lanes import kernel

_LOWEST = np.int32(-(2**31))


@kernel
def _order_keys(score_N, count, key_N):
    """Integers that order like the scores; the lowest integer for -inf and NaN. Count the rest."""
    bits_N = score_N.view(np.int32)
    real = 0
    for n in range(count):
        bits = bits_N[n]
        key = bits if bits >= 0 else np.int32(bits ^ np.int32(0x7FFFFFFF))
        # -0.0 and 0.0 tie.
        key = np.int32(0) if key == np.int32(-1) else key
        alive = score_N[n] > -np.inf
        key_N[n] = key if alive else _LOWEST
        real += alive
    return real


@kernel
def _count_from(key_N, count, low):
    total = np.int32(0)
    for n in range(count):
        total += np.int32(key_N[n] >= low)
    return total


@kernel
def _threshold(key_N, count, real, k):
    """A key with at least k keys from it on, and whether that is few enough to sort them all."""
    low, high = np.int64(2**31 - 1), np.int64(_LOWEST)
    for n in range(count):
        if key_N[n] != _LOWEST:
            low = min(low, np.int64(key_N[n]))
        high = max(high, np.int64(key_N[n]))
    found = np.int64(real)
    while low < high and found > k + k // 4:
        middle = low + (high - low + 1) // 2
        count_here = np.int64(_count_from(key_N, count, np.int32(middle)))
        if count_here >= k:
            low, found = middle, count_here
        else:
            high = middle - 1
    return np.int32(low), found <= k + k // 4


@kernel
def select_best(score_N, row_N, first, count, k, key_N, word_N, kept_K):
    """Write the k best rows, best first, ties to the later row, -1 in empty slots.

    Args:
        score_N: scores; -inf is no row.
        row_N: row numbers in any order, or an empty array where they are first, first + 1, ...
        first: number of the first row.
        count: how many scores there are.
        k: how many to keep.
        key_N: int32 scratch of at least `count`.
        word_N: int64 scratch of at least `count`.
        kept_K: the answer.
    """
    real = _order_keys(score_N, count, key_N)
    low, few = np.int32(_LOWEST + 1), True
    if real > k and len(row_N) == 0:
        low, few = _threshold(key_N, count, real, k)
    # A word orders like (score, row).
    found = 0
    lowest = np.int64(low) if few else np.int64(low) + 1
    for n in range(count):
        row = np.int64(row_N[n]) if len(row_N) else np.int64(first + n)
        word_N[found] = (np.int64(key_N[n]) << 32) | row
        found += np.int64(key_N[n]) >= lowest
    if not few:
        # Many rows tie at the threshold: the latest of them fill up.
        n = count - 1
        while found < k:
            if key_N[n] == low:
                word_N[found] = (np.int64(low) << 32) | np.int64(first + n)
                found += 1
            n -= 1
    word_N[:found].sort()
    for place in range(k):
        kept_K[place] = word_N[found - 1 - place] & 0xFFFFFFFF if place < found else -1


@kernel
def select_spans(score_S, span_C2, offset_C, c0, c1, kept_CK):
    """`select_best` for candidates c0 to c1 - 1, whose scores start at their flat offsets."""
    longest, k = 0, kept_CK.shape[1]
    for c in range(c0, c1):
        longest = max(longest, offset_C[c + 1] - offset_C[c])
    key_N, word_N = np.empty(longest, np.int32), np.empty(longest, np.int64)
    no_rows = np.empty(0, np.int32)
    for c in range(c0, c1):
        score_N = score_S[offset_C[c] : offset_C[c + 1]]
        select_best(score_N, no_rows, span_C2[c, 0], len(score_N), k, key_N, word_N, kept_CK[c])
