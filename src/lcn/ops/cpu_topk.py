"""Select the k best of n scores in O(n): find a threshold, collect, sort the few that are left."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lcn.ops.cpu_blocks import padded
from lcn.ops.lane_steps import bits_float, count_lanes, float_bits
from lcn.ops.lanes import LANE, kernel

_LOWEST = np.int32(-(2**31))
_BUCKETS = 256


@kernel
def _order_keys(score_N, count, key_N):
    """Integers that order like the scores; the lowest integer for -inf, NaN and padding.

    Returns:
        How many scores are real.
    """
    real = 0
    for n in range(count):
        bits = float_bits(score_N[n])
        key = bits if bits >= 0 else np.int32(bits ^ np.int32(0x7FFFFFFF))
        # -0.0 and 0.0 tie.
        key = np.int32(0) if key == np.int32(-1) else key
        alive = score_N[n] > -np.inf
        key_N[n] = key if alive else _LOWEST
        real += alive
    key_N[count : padded(count, LANE)] = _LOWEST
    return real


@kernel
def _value(key):
    key = np.int32(key)
    return bits_float(key if key >= 0 else np.int32(key ^ np.int32(0x7FFFFFFF)))


@kernel
def _middle(low, high):
    """A key above low and up to high: of the middle value, which splits smooth scores well."""
    bits = float_bits(np.float32(0.5) * _value(low) + np.float32(0.5) * _value(high))
    key = np.int64(bits if bits >= 0 else np.int32(bits ^ np.int32(0x7FFFFFFF)))
    return min(max(key, low + 1), high)


@kernel
def _threshold(key_N, count, real, k):
    """A key with at least k keys from it on, and whether that is few enough to sort them all."""
    low, high = np.int64(2**31 - 1), np.int64(_LOWEST)
    for n in range(count):
        key = np.int64(key_N[n])
        low = min(low, key if key != _LOWEST else low)
        high = max(high, key)
    groups = padded(count, LANE) // LANE
    found, tries = np.int64(real), 0
    while low < high and found > k + k // 4:
        # Halving the integers ends after 32 steps whatever the scores are.
        middle = _middle(low, high) if tries < 16 else low + (high - low + 1) // 2
        tries += 1
        here = count_lanes(key_N.ctypes.data, groups, np.int32(middle))
        if here >= k:
            low, found = middle, here
        else:
            high = middle - 1
    return np.int32(low), found <= k + k // 4


@kernel
def _sort(word_N, count, spare_N):
    """Sort words upwards: into buckets by value, then each past its few larger neighbours."""
    low, high = word_N[0], word_N[0]
    for n in range(count):
        low, high = min(low, word_N[n]), max(high, word_N[n])
    # The difference of two words may need all 64 bits.
    shift, reach = np.uint64(0), np.uint64(high) - np.uint64(low)
    while reach >> shift >= np.uint64(_BUCKETS):
        shift += np.uint64(1)
    place_B = np.zeros(_BUCKETS + 1, np.int64)
    for n in range(count):
        place_B[np.int64((np.uint64(word_N[n]) - np.uint64(low)) >> shift) + 1] += 1
    if np.max(place_B) > 32:
        word_N[:count].sort()
        return
    for b in range(_BUCKETS):
        place_B[b + 1] += place_B[b]
    for n in range(count):
        b = np.int64((np.uint64(word_N[n]) - np.uint64(low)) >> shift)
        spare_N[place_B[b]] = word_N[n]
        place_B[b] += 1
    for n in range(count):
        word, m = spare_N[n], n
        while m > 0 and word_N[m - 1] > word:
            word_N[m] = word_N[m - 1]
            m -= 1
        word_N[m] = word


class Sorter(NamedTuple):
    """Scratch for selecting among up to N scores."""

    key_N: np.ndarray
    word_N: np.ndarray
    spare_N: np.ndarray


@kernel
def make_sorter(longest):
    """Allocate scratch for `longest` scores."""
    return Sorter(
        np.empty(padded(longest, LANE), np.int32),
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
    )


@kernel
def select_best(score_N, row_N, first, count, k, scratch, kept_K):
    """Write the k best rows, best first, ties to the later row, -1 in empty slots.

    Args:
        score_N: scores; -inf is no row.
        row_N: row numbers in any order, or an empty array where they are first, first + 1, ...
        first: number of the first row.
        count: how many scores there are.
        k: how many to keep.
        scratch: from `make_sorter`, for at least `count`.
        kept_K: the answer.
    """
    key_N, word_N, spare_N = scratch.key_N, scratch.word_N, scratch.spare_N
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
    if found:
        _sort(word_N, found, spare_N)
    for place in range(k):
        kept_K[place] = word_N[found - 1 - place] & 0xFFFFFFFF if place < found else -1


@kernel
def select_spans(score_S, span_C2, offset_C, c0, c1, kept_CK):
    """`select_best` for candidates c0 to c1 - 1, whose scores start at their flat offsets."""
    longest, k = 0, kept_CK.shape[1]
    for c in range(c0, c1):
        longest = max(longest, offset_C[c + 1] - offset_C[c])
    scratch = make_sorter(longest)
    no_rows = np.empty(0, np.int32)
    for c in range(c0, c1):
        score_N = score_S[offset_C[c] : offset_C[c + 1]]
        select_best(score_N, no_rows, span_C2[c, 0], len(score_N), k, scratch, kept_CK[c])
