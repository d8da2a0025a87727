"""Select the k best of n scores in O(n): find a threshold, collect, sort the few that are left."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lcn.ops.cpu_blocks import padded
from lcn.ops.lane_steps import (
    BOTH,
    bits_float,
    float_bits,
    lowest_bit,
    mask_lanes,
    split_lanes,
)
from lcn.ops.lanes import LANE, kernel, leaf

LOWEST = np.int32(-(2**31))
_BUCKETS = 256
STRIDE = 4 * LANE
"""Keys that are compared together; scratch is padded to a multiple."""


@leaf
def order_keys(score_N, count, key_N):
    """Integers that order like the scores; the lowest integer for -inf, NaN and padding.

    Returns:
        How many scores are real, and the lowest and the highest key of those.
    """
    real, low, high = np.int32(0), np.int32(2**31 - 1), LOWEST
    for n in range(count):
        bits = float_bits(score_N[n])
        key = np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        # -0.0 and 0.0 tie.
        key = np.int32(0) if key == np.int32(-1) else key
        alive = score_N[n] > -np.inf
        key = key if alive else LOWEST
        key_N[n] = key
        high = max(high, key)
        low = min(low, key if alive else np.int32(2**31 - 1))
        real += np.int32(alive)
    key_N[count : padded(count, STRIDE)] = LOWEST
    return np.int64(real), np.int64(low), np.int64(high)


@leaf
def _value(key):
    key = np.int32(key)
    return bits_float(key if key >= 0 else np.int32(key ^ np.int32(0x7FFFFFFF)))


@leaf
def middle_key(low, high):
    """A key above low and up to high: of the middle value, which splits smooth scores well."""
    bits = float_bits(np.float32(0.5) * _value(low) + np.float32(0.5) * _value(high))
    key = np.int64(bits if bits >= 0 else np.int32(bits ^ np.int32(0x7FFFFFFF)))
    return min(max(key, low + 1), high)


@leaf
def _threshold(key_N, count, bounds, k, ends_2):
    """A key with at least k keys from it on, and whether that is few enough to sort them all.

    `bounds` holds the number of real keys, the lowest and the highest of them. Both ends always
    are keys that occur, so equal keys, however many, end the search.
    """
    found, low, high = bounds
    groups, tries, few = padded(count, STRIDE) // BOTH, 0, k + k // 4
    while low < high and found > few:
        # Halving the integers ends after 32 steps whatever the scores are.
        middle = middle_key(low, high) if tries < 16 else low + (high - low + 1) // 2
        tries += 1
        here = split_lanes(key_N.ctypes.data, groups, np.int32(middle), ends_2.ctypes.data)
        if here >= k:
            low, found = np.int64(ends_2[0]), here
        else:
            high = np.int64(ends_2[1])
    return np.int32(low), found <= few


@leaf
def _buckets(word_N, count, bucket_N):
    """Number words so that a larger bucket holds larger values; False where values are no help."""
    low, high = word_N[0], word_N[0]
    for n in range(count):
        low, high = min(low, word_N[n]), max(high, word_N[n])
    first, last = _value(low >> 32), _value(high >> 32)
    reach = last - first
    # Values that differ by little more than their rounding, or by infinity.
    if not np.float32(1e-30) < reach < np.float32(1e30):
        return False
    scale = np.float32(_BUCKETS - 1) / reach
    for n in range(count):
        bucket_N[n] = np.int32((_value(word_N[n] >> 32) - first) * scale)
    return True


@leaf
def _sift(word_N, start, count):
    """Let a word sink until no word below it is larger."""
    word, n = word_N[start], start
    while 2 * n + 1 < count:
        below = 2 * n + 1
        below += below + 1 < count and word_N[below + 1] > word_N[below]
        if word_N[below] <= word:
            break
        word_N[n] = word_N[below]
        n = below
    word_N[n] = word


@leaf
def _heap_sort(word_N, count):
    """Sort words upwards in n log n steps whatever they are, without memory of its own."""
    for start in range(count // 2 - 1, -1, -1):
        _sift(word_N, start, count)
    for last in range(count - 1, 0, -1):
        word_N[0], word_N[last] = word_N[last], word_N[0]
        _sift(word_N, 0, last)


@leaf
def sort_words(word_N, count, scratch):
    """Sort words upwards: into buckets by value, then each past its few larger neighbours."""
    bucket_N, spare_N, place_B = scratch.key_N, scratch.spare_N, scratch.place_B
    if not _buckets(word_N, count, bucket_N):
        _heap_sort(word_N, count)
        return
    place_B[:] = 0
    for n in range(count):
        place_B[bucket_N[n] + 1] += 1
    for b in range(_BUCKETS):
        place_B[b + 1] += place_B[b]
    for n in range(count):
        b = bucket_N[n]
        spare_N[place_B[b]] = word_N[n]
        place_B[b] += 1
    # Words of a bucket keep their order, so equal scores of rows in order are sorted already.
    moves = 0
    for n in range(count):
        word, m = spare_N[n], n
        while m > 0 and word_N[m - 1] > word:
            word_N[m] = word_N[m - 1]
            m -= 1
        word_N[m] = word
        moves += n - m
        if moves > 16 * count:
            for rest in range(n + 1, count):
                word_N[rest] = spare_N[rest]
            _heap_sort(word_N, count)
            return


class Sorter(NamedTuple):
    """Scratch for selecting among up to N scores."""

    key_N: np.ndarray
    word_N: np.ndarray
    spare_N: np.ndarray
    place_B: np.ndarray
    ends_2: np.ndarray


@kernel
def make_sorter(longest):
    """Allocate scratch for `longest` scores."""
    return Sorter(
        np.empty(padded(longest, STRIDE), np.int32),
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.empty(_BUCKETS + 1, np.int32),
        np.empty(2, np.int32),
    )


@leaf
def collect(key_N, count, lowest, row_N, first, word_N):
    """Write (key, row) of the keys from `lowest` on as words that order like it.

    Returns:
        How many there are.
    """
    found = 0
    for start in range(0, count, STRIDE):
        bits = mask_lanes(key_N.ctypes.data + 4 * start, lowest)
        while bits:
            n = start + lowest_bit(bits)
            bits &= bits - np.uint32(1)
            row = np.int64(row_N[n]) if len(row_N) else np.int64(first + n)
            word_N[found] = (np.int64(key_N[n]) << 32) | row
            found += 1
    return found


@leaf
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
    key_N, word_N = scratch.key_N, scratch.word_N
    bounds = order_keys(score_N, count, key_N)
    low, few = np.int32(LOWEST + 1), True
    if bounds[0] > k:
        low, few = _threshold(key_N, count, bounds, k, scratch.ends_2)
    # Many rows tie at the threshold: of listed ones all are sorted, of others the latest fill up.
    fill = not few and len(row_N) == 0
    found = collect(key_N, count, np.int32(low + 1) if fill else low, row_N, first, word_N)
    if fill:
        n = count - 1
        while found < k:
            if key_N[n] == low:
                word_N[found] = (np.int64(low) << 32) | np.int64(first + n)
                found += 1
            n -= 1
    if found:
        sort_words(word_N, found, scratch)
    for place in range(k):
        kept_K[place] = word_N[found - 1 - place] & 0xFFFFFFFF if place < found else -1


@kernel
def select_spans(score_S, span_C2, offset_C, c0, c1, kept_CK):
    """`select_best` for candidates c0 to c1 - 1, whose scores start at their flat offsets."""
    longest = 0
    for c in range(c0, c1):
        longest = max(longest, offset_C[c + 1] - offset_C[c])
    scratch, no_rows = make_sorter(longest), np.empty(0, np.int32)
    _select_spans(score_S, span_C2, offset_C, c0, c1, scratch, no_rows, kept_CK)


@leaf
def _select_spans(score_S, span_C2, offset_C, c0, c1, scratch, no_rows, kept_CK):
    for c in range(c0, c1):
        score_N = score_S[offset_C[c] : offset_C[c + 1]]
        first, k = span_C2[c, 0], kept_CK.shape[1]
        select_best(score_N, no_rows, first, len(score_N), k, scratch, kept_CK[c])
