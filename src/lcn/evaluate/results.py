"""A run's result: metrics with intervals over users and, if it was trained several times, seeds.

Shapes: K seeds, M metrics.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lcn.errors import DataError
from lcn.evaluate.bootstrap import (
    LEVEL,
    RESAMPLES,
    Interval,
    Intervals,
    blank_few,
    intervals_of,
    reflect_ece,
    spread_by_seed,
)
from lcn.evaluate.metrics import BINS, measure
from lcn.evaluate.platt import scale_by
from lcn.evaluate.predictions import Predictions, align, check_seeds
from lcn.evaluate.replicate import estimate, prepare, replicate


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One row of the table of models."""

    run: str
    seeds: tuple[int, ...]
    intervals: Intervals
    """Of the mean over seeds."""
    gauc_coverage: float
    """Share of impressions that GAUC speaks for."""
    impressions: int
    users: int
    platt_log_loss: Interval | None = None
    """Log loss after Platt scaling fitted on validation predictions, if those were given."""


def result_of(
    test: Sequence[Predictions],
    validation: Sequence[Predictions] = (),
    *,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    bins: int = BINS,
) -> RunResult:
    """Measure a run, given its predictions of one or several seeds.

    Args:
        test: predictions to measure, one per seed.
        validation: predictions to fit Platt scaling on, of the same seeds; may be left out.
        generator: source of the draws.
        resamples: how many resamples of the users.
        level: coverage of the intervals.
        bins: calibration bins.

    Raises:
        DataError: the predictions are of several runs or do not align, a seed is given twice, or
            validation seeds differ.
    """
    names = sorted({run.run for run in test})
    if len(names) != 1:
        raise DataError(f"a result is of one run, got predictions of {names or 'none'}")
    check_seeds(test)
    check_seeds(validation)
    metrics = measure(test[0], bins)
    platt = None
    if validation:
        by_seed = {run.seed: run for run in validation}
        missing = sorted({run.seed for run in test} - by_seed.keys())
        if missing:
            raise DataError(
                f"run {names[0]!r} has no validation predictions for seeds {missing}; predict the "
                "validation split with them, or leave Platt scaling out"
            )
        scaled = [scale_by(by_seed[run.seed], run) for run in test]
        # The same draws as below: both log losses see the same resamples. The copy spawns the same
        # children, which a generator of the same state alone does not.
        twin = copy.deepcopy(generator)
        platt = _intervals(scaled, twin, resamples, level, bins).log_loss
    return RunResult(
        run=names[0],
        seeds=tuple(sorted(run.seed for run in test)),
        intervals=_intervals(test, generator, resamples, level, bins),
        gauc_coverage=metrics.gauc_coverage,
        impressions=metrics.impressions,
        users=metrics.users,
        platt_log_loss=platt,
    )


def _intervals(
    runs: Sequence[Predictions],
    generator: np.random.Generator,
    resamples: int,
    level: float,
    bins: int,
) -> Intervals:
    aligned = align(runs)
    prepared = [prepare(run, bins) for run in aligned]
    estimate_KM = np.stack([estimate(run) for run in prepared])
    value_KRM = replicate(prepared, resamples, generator)
    users = prepared[0].users
    spread = spread_by_seed(estimate_KM, value_KRM, level, prepared[0].users_M)
    spread = blank_few(reflect_ece(spread), prepared[0].users_M)
    return intervals_of(spread, level, resamples, users)
