"""The bootstrap's inner loops: one walk over the impressions serves many resamples at once.

Impressions lie in score order; each resample is a lane holding how often it drew each user. All
sums are of integers below 2^53 held in float64, hence exact, except the calibration residuals.

Shapes: S impressions, U users, L lanes, B calibration bins, D draws of one lane, M sums.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LANES = 32
"""Resamples per walk: enough that the compiler turns the lane loops into vector instructions
(half a nanosecond per impression and lane, half of what 16 take), few enough to stay in cache."""

NEGATIVE, POSITIVE, TIED_POSITIVE, FIRST_TIED_NEGATIVE = 0, 1, 2, 3


@njit(nogil=True, cache=True)
def walk(user_S, kind_S, residual_S, edge_B1, weight_UL, twice_L, gap_L):  # pragma: no cover
    """Count pairs won and add up calibration gaps for every lane.

    Within a group of equal scores negatives come first, so a positive has beaten all negatives
    before it, but only half of those since its group began.

    Args:
        user_S: user number of each impression, in score order.
        kind_S: one of the four kinds above.
        residual_S: prediction minus label.
        edge_B1: first rank of each bin and one past the last.
        weight_UL: how often each lane drew each user.
        twice_L: filled with twice the weighted pairs won.
        gap_L: filled with the sum over bins of |sum of weighted residuals|.
    """
    below_L = np.zeros(LANES)
    before_group_L = np.zeros(LANES)
    residual_L = np.zeros(LANES)
    twice_L[:] = 0.0
    gap_L[:] = 0.0
    for b in range(len(edge_B1) - 1):
        residual_L[:] = 0.0
        for i in range(edge_B1[b], edge_B1[b + 1]):
            user, kind, residual = user_S[i], kind_S[i], residual_S[i]
            if kind == FIRST_TIED_NEGATIVE:
                before_group_L[:] = below_L
            if kind == POSITIVE:
                for lane in range(LANES):
                    weight = np.float64(weight_UL[user, lane])
                    twice_L[lane] += weight * (2.0 * below_L[lane])
                    residual_L[lane] += weight * residual
            elif kind == TIED_POSITIVE:
                for lane in range(LANES):
                    weight = np.float64(weight_UL[user, lane])
                    twice_L[lane] += weight * (below_L[lane] + before_group_L[lane])
                    residual_L[lane] += weight * residual
            else:
                for lane in range(LANES):
                    weight = np.float64(weight_UL[user, lane])
                    below_L[lane] += weight
                    residual_L[lane] += weight * residual
        for lane in range(LANES):
            gap_L[lane] += abs(residual_L[lane])


@njit(nogil=True, cache=True)
def count_draws(drawn_LD, weight_UL):  # pragma: no cover
    """Count how often each lane drew each user; `weight_UL` holds zeros before.

    Counting into one lane's short row and turning it afterwards keeps the counts in cache.
    """
    users, lanes = weight_UL.shape
    count_U = np.empty(users, dtype=np.uint8)
    for lane in range(lanes):
        count_U[:] = 0
        for user in drawn_LD[lane]:
            count_U[user] += 1
        for user in range(users):
            weight_UL[user, lane] = count_U[user]


@njit(nogil=True, cache=True)
def add_users(sum_UM, weight_UL, total_ML):  # pragma: no cover
    """Add up every user's sums, weighted by each lane: a matrix product with small integers."""
    total_ML[:] = 0.0
    for user in range(len(sum_UM)):
        for m in range(sum_UM.shape[1]):
            value = sum_UM[user, m]
            for lane in range(LANES):
                total_ML[m, lane] += value * np.float64(weight_UL[user, lane])
