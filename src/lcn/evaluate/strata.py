"""Metrics by history length: a lifelong model should earn its keep where histories are long.

Shapes: S impressions, B strata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lcn.evaluate.bootstrap import LEVEL, RESAMPLES
from lcn.evaluate.compare import PairedDifference, compare
from lcn.evaluate.metrics import BINS, Metrics, measure
from lcn.evaluate.predictions import Predictions, align

FEWEST_USERS = 10
"""Of a stratum with an interval: with fewer, percentiles are too close together to be believed."""


@dataclass(frozen=True, slots=True, eq=False)
class Stratum:
    """Impressions whose history length lies in one range."""

    shortest: int
    longest: int
    """Shortest and longest history that occurs in it."""
    row_N: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StratumMetrics:
    """One range of history lengths and the metrics there."""

    shortest: int
    longest: int
    share: float
    """Share of all impressions."""
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class StratumDifference:
    """One range of history lengths and the paired difference there."""

    shortest: int
    longest: int
    share: float
    difference: PairedDifference


def stratify(
    length_S: ArrayLike, bins: int = 4, edges: Sequence[int] | None = None
) -> tuple[Stratum, ...]:
    """Cut impressions by history length, at quantiles or where told.

    Args:
        length_S: events in each impression's history.
        bins: how many ranges of about equally many impressions; equal lengths stay together, so
            there may be fewer.
        edges: first length of every range but the lowest, e.g. (10, 100) for below 10, 10-99 and
            100 or more; instead of `bins`.

    Returns:
        The ranges that hold impressions, shortest histories first.

    Raises:
        ValueError: no impressions, lengths that are no counts, or edges that do not increase.
    """
    length_S = np.asarray(length_S)
    if length_S.ndim != 1 or not length_S.size or length_S.dtype.kind not in "iu":
        raise ValueError(
            "history lengths must be one integer per impression, got "
            f"{length_S.dtype} of shape {length_S.shape}"
        )
    if length_S.min() < 0:
        raise ValueError(f"history lengths must not be negative, got {int(length_S.min())}")
    if edges is None:
        if bins < 1:
            raise ValueError(f"stratifying needs at least 1 bin, got {bins}")
        at = np.linspace(0, 1, bins + 1)[1:-1]
        edges = np.unique(np.quantile(length_S, at, method="higher")).tolist()
    elif any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges must increase, got {list(edges)}")
    first_B = np.asarray(edges)
    bin_S = np.searchsorted(first_B, length_S, side="right")
    rows = [np.flatnonzero(bin_S == b) for b in range(len(first_B) + 1)]
    return tuple(
        Stratum(int(length_S[row_N].min()), int(length_S[row_N].max()), row_N)
        for row_N in rows
        if row_N.size
    )


def measure_strata(
    predictions: Predictions,
    length_S: ArrayLike,
    *,
    bins: int = 4,
    edges: Sequence[int] | None = None,
    calibration_bins: int = BINS,
) -> tuple[StratumMetrics, ...]:
    """Metrics per range of history length; see `stratify`.

    Args:
        predictions: one run.
        length_S: history length of each row of `predictions`.
        bins: how many ranges.
        edges: ranges given instead.
        calibration_bins: bins of the calibration error.
    """
    return tuple(
        StratumMetrics(
            stratum.shortest,
            stratum.longest,
            len(stratum.row_N) / len(predictions),
            measure(predictions.take(stratum.row_N), calibration_bins),
        )
        for stratum in _strata_of(predictions, length_S, bins, edges)
    )


def compare_strata(
    reference: Predictions,
    other: Predictions,
    length_S: ArrayLike,
    *,
    generator: np.random.Generator,
    bins: int = 4,
    edges: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[StratumDifference, ...]:
    """Paired differences per range of history length; see `stratify` and `compare`.

    A range with fewer than `FEWEST_USERS` users shows its differences without intervals (NaN).

    Args:
        reference: the run to compare with.
        other: the run to judge.
        length_S: history length of each row of `reference`.
        generator: source of the draws.
        bins: how many ranges.
        edges: ranges given instead.
        resamples: how many resamples of the users.
        level: coverage of the intervals.
    """
    strata = _strata_of(reference, length_S, bins, edges)
    aligned_reference, aligned_other = align([reference, other])
    rank_of_row = np.argsort(np.argsort(reference.sample_S))
    found = []
    for stratum in strata:
        row_N = np.sort(rank_of_row[stratum.row_N])
        difference = compare(
            aligned_reference.take(row_N),
            aligned_other.take(row_N),
            resamples=resamples,
            generator=generator,
            level=level,
            fewest_users=FEWEST_USERS,
        )
        share = len(row_N) / len(reference)
        found.append(StratumDifference(stratum.shortest, stratum.longest, share, difference))
    return tuple(found)


def _strata_of(
    predictions: Predictions, length_S: ArrayLike, bins: int, edges: Sequence[int] | None
) -> tuple[Stratum, ...]:
    length_S = np.asarray(length_S)
    if length_S.shape != (len(predictions),):
        raise ValueError(
            f"history lengths must be those of the {len(predictions)} predicted impressions, in "
            f"their order; got shape {length_S.shape}: take them by predictions.sample_S"
        )
    return stratify(length_S, bins, edges)
