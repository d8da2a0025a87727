"""Which of two runs is better, and is it more than luck? Same samples, same users, both runs.

Shapes: K seeds, R resamples, M metrics, S impressions, P comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lcn.errors import DataError
from lcn.evaluate.bootstrap import (
    FEWEST_USERS,
    LEVEL,
    RESAMPLES,
    Spread,
    blank_few,
    check_level,
    spread_by_seed,
)
from lcn.evaluate.checks import Float64
from lcn.evaluate.metrics import BINS
from lcn.evaluate.predictions import Predictions, align, check_seeds, check_settings
from lcn.evaluate.replicate import METRICS, estimate, prepare, replicate


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two runs; the difference is other minus reference."""

    reference: float
    other: float
    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float
    """Two-sided, of the hypothesis of no difference; not corrected for many comparisons."""
    freedom: float
    """Student's degrees of freedom; infinite for one seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Every metric of two runs, compared on the same impressions."""

    reference: str
    other: str
    seeds: tuple[int, ...]
    impressions: int
    users: int
    level: float
    resamples: int
    auc: Difference
    gauc: Difference
    log_loss: Difference
    calibration_ratio: Difference
    ece: Difference


def compare(
    reference: Predictions | Sequence[Predictions],
    other: Predictions | Sequence[Predictions],
    *,
    resamples: int = RESAMPLES,
    generator: np.random.Generator,
    level: float = LEVEL,
    bins: int = BINS,
    fewest_users: int = FEWEST_USERS,
) -> PairedDifference:
    """Compare two runs on the same impressions, resampling users (and seeds, if several).

    Both runs see the same resamples, so what makes a resample easy or hard cancels. One seed:
    percentile interval, which speaks for these two trained models. Several seeds: interval for
    the mean difference over seeds, which speaks for the two methods; see
    `bootstrap.spread_over_seeds`.

    Args:
        reference: the run to compare with, one file per seed.
        other: the run to judge, with the same seeds.
        resamples: how many resamples of the users.
        generator: source of the draws.
        level: coverage of the intervals.
        bins: calibration bins.
        fewest_users: metrics that speak for fewer users get neither interval nor p-value (NaN).

    Raises:
        DataError: other datasets, splits, samples or seeds, or several runs or one seed twice
            under one side.
    """
    check_level(level)
    reference_K, other_K = _by_seed(reference), _by_seed(other)
    seeds = tuple(run.seed for run in reference_K)
    if seeds != tuple(run.seed for run in other_K):
        raise DataError(
            f"{reference_K[0].run!r} has seeds {list(seeds)}, {other_K[0].run!r} has seeds "
            f"{[run.seed for run in other_K]}; a paired comparison needs the same seeds on both "
            "sides: train the missing ones or leave the extra ones out"
        )
    aligned = align([*reference_K, *other_K])
    prepared = [prepare(run, bins) for run in aligned]
    estimate_2KM = np.stack([estimate(run) for run in prepared]).reshape(2, len(seeds), -1)
    value_KRM = replicate(prepared, resamples, generator)
    value_2KRM = value_KRM.reshape(2, len(seeds), *value_KRM.shape[1:])
    users = prepared[0].users
    difference_KM = estimate_2KM[1] - estimate_2KM[0]
    difference_KRM = value_2KRM[1] - value_2KRM[0]
    spread = spread_by_seed(difference_KM, difference_KRM, level, prepared[0].users_M)
    spread = blank_few(spread, prepared[0].users_M, fewest_users)
    return PairedDifference(
        reference=reference_K[0].run,
        other=other_K[0].run,
        seeds=seeds,
        impressions=len(aligned[0]),
        users=users,
        level=level,
        resamples=resamples,
        **_differences(estimate_2KM.mean(axis=1), spread),
    )


def holm(p_value_P: ArrayLike) -> Float64:
    """Correct p-values for having made many comparisons (family-wise error).

    The i-th smallest of P is multiplied by P - i + 1 and never falls below the one before. A NaN
    stays NaN and does not count as a comparison.

    Source: Holm 1979.

    Args:
        p_value_P: p-values of all comparisons that were made, not only the promising ones.

    Returns:
        Corrected p-values, in the given order.

    Raises:
        ValueError: a value outside [0, 1].
    """
    p_value_P = np.asarray(p_value_P, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p_value_P))
    given = p_value_P[known]
    if given.size and (given.min() < 0 or given.max() > 1):
        raise ValueError(f"p-values must lie in [0, 1], got {given.min():g} to {given.max():g}")
    order = np.argsort(given, kind="stable")
    factor = np.arange(len(given), 0, -1)
    corrected = np.full(len(p_value_P), np.nan)
    corrected[known[order]] = np.minimum(1.0, np.maximum.accumulate(given[order] * factor))
    return corrected


def group_runs(runs: Sequence[Predictions]) -> tuple[tuple[Predictions, ...], ...]:
    """Gather the seeds of each run, runs in order of first appearance.

    Raises:
        DataError: one name for runs whose settings differ in more than the seed.
    """
    names = dict.fromkeys(run.run for run in runs)
    groups = tuple(tuple(run for run in runs if run.run == name) for name in names)
    for group in groups:
        check_settings(group)
    return groups


def _by_seed(runs: Predictions | Sequence[Predictions]) -> list[Predictions]:
    runs = [runs] if isinstance(runs, Predictions) else list(runs)
    if not runs:
        raise DataError("one side of the comparison has no predictions; give at least one run")
    names = sorted({run.run for run in runs})
    if len(names) > 1:
        raise DataError(f"one side of the comparison mixes the runs {names}; give seeds of one run")
    check_seeds(runs)
    return sorted(runs, key=lambda run: run.seed)


def _differences(estimate_2M: Float64, spread: Spread) -> dict[str, Difference]:
    """Field name of `PairedDifference` -> its difference."""
    columns = (
        *estimate_2M,
        spread.estimate_M,
        spread.low_M,
        spread.high_M,
        spread.error_M,
        spread.p_value_M,
        spread.freedom_M,
    )
    return {
        name: Difference(*(float(column_M[m]) for column_M in columns))
        for m, name in enumerate(METRICS)
    }
