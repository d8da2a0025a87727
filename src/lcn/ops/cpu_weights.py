"""Softmax of one run of scores in the cache."""

from __future__ import annotations

import numpy as np

from lcn.ops.cpu_blocks import padded
from lcn.ops.lane_steps import exp_lanes, max_lanes
from lcn.ops.lanes import LANE, leaf


@leaf
def softmax(score_N, count, lanes_2L):
    """Turn `count` scores into unscaled weights in place, up to whole lanes; returns their sum.

    Weights beyond `count` are zero. `lanes_2L` is scratch.
    """
    top, total = lanes_2L[0].ctypes.data, lanes_2L[1].ctypes.data
    for n in range(LANE):
        lanes_2L[0, n] = -np.inf
    for n in range(count, padded(count, LANE)):
        score_N[n] = -np.inf
    groups, score = padded(count, LANE) // LANE, score_N.ctypes.data
    max_lanes(score, 4 * LANE, groups, top)
    highest = lanes_2L[0, 0]
    for n in range(LANE):
        highest = max(highest, lanes_2L[0, n])
    for n in range(LANE):
        lanes_2L[0, n] = highest
    exp_lanes(score, 4 * LANE, groups, top, total)
    found = np.float32(0.0)
    for n in range(LANE):
        found += lanes_2L[1, n]
    return max(found, np.float32(1e-30))
