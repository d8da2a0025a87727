"""Equal tuning: every row tries as many settings as any other, and validation alone chooses.

Trial 0 is the recipe as it stands. The others walk through random orders of each knob's values, so
that every value is tried about equally often; knobs of one name walk alike in every row, so rows
meet the same learning rates and differ by what is theirs. What the shared knobs say differs from
trial to trial, so that a row without knobs of its own tries as much as any other.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from lcn.errors import ConfigError
from lcn.experiments.rows import BASE_KNOBS, Knob, Row

_ENOUGH = 64
"""Turns of the walks that are looked at for each that is wanted."""


def plan_trials(
    row: Row,
    trials: int,
    seed: int,
    *,
    fixed: Collection[str] = (),
    changes: Callable[[tuple[str, ...]], bool] = lambda overrides: True,
) -> tuple[tuple[str, ...], ...]:
    """The overrides of each trial, the first without any, no two alike.

    Args:
        row: whose knobs, beside those of every row.
        trials: how many, the same for every row.
        seed: of the orders.
        fixed: settings that are not to be turned.
        changes: whether overrides make the row another than it stands; those that do not are no
            trial.

    Raises:
        ConfigError: the knobs of every row have fewer values than that; a row that has no others
            would be tuned less than its rivals.
    """
    if trials <= 1:
        return ((),)
    shared = _shared_turns(trials - 1, seed, fixed, changes)
    own = [_walk(each, len(shared), seed) for each in _free(row.knobs, fixed)]
    turned = [
        (*of_all, *(override for walk in own for override in walk[turn]))
        for turn, of_all in enumerate(shared)
    ]
    return ((), *turned)


def _shared_turns(
    turns: int, seed: int, fixed: Collection[str], changes: Callable[[tuple[str, ...]], bool]
) -> list[tuple[str, ...]]:
    """Different values of the knobs that all rows have."""
    knobs = _free(BASE_KNOBS, fixed)
    walks = [_walk(each, _ENOUGH * turns, seed) for each in knobs]
    found: list[tuple[str, ...]] = []
    for values in zip(*walks, strict=True):
        overrides = tuple(override for value in values for override in value)
        if overrides not in found and changes(overrides):
            found.append(overrides)
            if len(found) == turns:
                return found
    names = ", ".join(each.name for each in knobs) or "none"
    raise ConfigError(
        f"there are {len(found) + 1} settings to try (knobs of every row: {names}), not "
        f"{turns + 1}: give --trials {len(found) + 1} or fewer"
    )


def _free(knobs: Sequence[Knob], fixed: Collection[str]) -> list[Knob]:
    return [
        each
        for each in knobs
        if not any(
            _within(text.partition("=")[0], fixed) for value in each.values for text in value
        )
    ]


def _within(setting: str, fixed: Collection[str]) -> bool:
    """Whether a setting, or a group that it is in, is fixed."""
    return any(setting == name or setting.startswith(f"{name}.") for name in fixed)


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
