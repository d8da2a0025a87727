"""Equal tuning: every row tries as many settings as any other, and validation alone chooses.

Trial 0 is the recipe as it stands. The others walk through random orders of each knob's values, so
that every value is tried about equally often; knobs of one name walk alike in every row, so rows
meet the same learning rates and differ by what is theirs.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from lcn.experiments.rows import BASE_KNOBS, Knob, Row


def plan_trials(row: Row, trials: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """The overrides of each trial, the first without any.

    Args:
        row: whose knobs, beside those of every row.
        trials: how many, the same for every row.
        seed: of the orders.
    """
    knobs = (*BASE_KNOBS, *row.knobs)
    walks = [_walk(each, trials - 1, seed) for each in knobs]
    turned = [
        tuple(override for walk in walks for override in walk[turn])
        for turn in range(max(trials - 1, 0))
    ]
    return ((), *turned)


def choose(values: Sequence[float], monitor: str) -> int:
    """The trial with the best validation value; the first of equal ones; failed trials are NaN.

    Raises:
        ValueError: every trial failed.
    """
    sign = -1.0 if monitor == "log_loss" else 1.0
    known = [sign * value if not math.isnan(value) else -math.inf for value in values]
    best = int(np.argmax(known))
    if known[best] == -math.inf:
        raise ValueError("every trial failed")
    return best


def _walk(knob: Knob, steps: int, seed: int) -> list[tuple[str, ...]]:
    """One of the knob's values per step: random orders of all of them, one after another."""
    generator = np.random.default_rng([seed, zlib.crc32(knob.name.encode())])
    places: list[int] = []
    while len(places) < steps:
        places += generator.permutation(len(knob.values)).tolist()
    return [knob.values[place] for place in places[:steps]]
