"""Intervals by resampling users: impressions of one user are not independent, users are.

Shapes: K runs of different seeds, R resamples, M metrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lcn.evaluate.checks import Float64, Int64
from lcn.evaluate.metrics import BINS
from lcn.evaluate.predictions import Predictions
from lcn.evaluate.replicate import METRICS, estimate, prepare, replicate

RESAMPLES = 1000
LEVEL = 0.95
FEWEST_USERS = 2
"""Resamples of a single user are all alike: their interval would be a point."""
_ECE = METRICS.index("ece")


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval; NaN bounds where nothing can be said."""

    estimate: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Intervals of every metric of a run."""

    auc: Interval
    gauc: Interval
    log_loss: Interval
    calibration_ratio: Interval
    ece: Interval
    level: float
    resamples: int
    users: int


@dataclass(frozen=True, slots=True)
class Spread:
    """What resampling tells about each metric; the M axis is that of `METRICS`."""

    estimate_M: Float64
    low_M: Float64
    high_M: Float64
    error_M: Float64
    """Standard error."""
    p_value_M: Float64
    """Two-sided, of the hypothesis that the estimate's true value is 0."""
    freedom_M: Float64
    """Student's degrees of freedom; infinite where users alone were resampled."""


def bootstrap(
    predictions: Predictions,
    *,
    resamples: int = RESAMPLES,
    generator: np.random.Generator,
    level: float = LEVEL,
    bins: int = BINS,
) -> Intervals:
    """Interval of every metric by resampling users with all their impressions.

    Percentile intervals, NaN for metrics that speak for a single user. ECE alone is *reflected*
    (estimate - (replicate - estimate)), never below 0 and always reaching the estimate: noise lifts
    the ECE of a resample above the estimate just as it lifted the estimate above the truth, so its
    percentiles would lie too high.

    Source: Efron and Tibshirani 1993, chapters 13 and 8.4 (resampling clusters).

    Args:
        predictions: one run on one split.
        resamples: how many; 1000 settles the bounds to about a tenth of a standard error.
        generator: source of the draws.
        level: coverage of the interval.
        bins: calibration bins.

    Raises:
        ValueError: fewer than two resamples or a level outside (0, 1).
    """
    prepared = prepare(predictions, bins)
    value_KRM = replicate([prepared], resamples, generator)
    spread = reflect_ece(spread_of(estimate(prepared), value_KRM[0], level))
    return intervals_of(blank_few(spread, prepared.users_M), level, resamples, prepared.users)


def spread_of(estimate_M: Float64, value_RM: Float64, level: float) -> Spread:
    """Percentile intervals; resamples that leave a metric undefined are left out of it.

    The p-value inverts the interval: twice the smaller share of replicates on either side of 0,
    counting the estimate itself once. Where none is beyond 0 that says no more than 2 / (R + 1),
    which a correction for many comparisons would make nothing of; there, and where the estimate is
    on the same side, the normal tail of estimate / error counts where it is smaller.
    """
    check_level(level)
    bounds = np.array([(1 - level) / 2, (1 + level) / 2])
    low_M, high_M, error_M, p_value_M = (np.full(len(estimate_M), np.nan) for _ in range(4))
    for m, value_R in enumerate(value_RM.T):
        known_R = value_R[~np.isnan(value_R)]
        if len(known_R) < 2 or np.isnan(estimate_M[m]):
            continue
        low_M[m], high_M[m] = np.quantile(known_R, bounds)
        error_M[m] = known_R.std(ddof=1)
        side = min(int((known_R <= 0).sum()), int((known_R >= 0).sum()))
        p_value_M[m] = min(1.0, 2 * (side + 1) / (len(known_R) + 1))
        agrees = np.sign(estimate_M[m]) == np.sign(known_R[0])
        if side == 0 and agrees and error_M[m]:
            normal = math.erfc(abs(estimate_M[m]) / error_M[m] / math.sqrt(2))
            p_value_M[m] = min(p_value_M[m], normal)
    freedom_M = np.full(len(estimate_M), np.inf)
    return Spread(estimate_M, low_M, high_M, error_M, p_value_M, freedom_M)


def spread_by_seed(
    estimate_KM: Float64, value_KRM: Float64, level: float, users_M: Int64
) -> Spread:
    """`spread_of` one seed, or `spread_over_seeds` of several; arguments as there."""
    if len(estimate_KM) == 1:
        return spread_of(estimate_KM[0], value_KRM[0], level)
    return spread_over_seeds(estimate_KM, value_KRM, level, users_M)


def spread_over_seeds(
    estimate_KM: Float64, value_KRM: Float64, level: float, users_M: Int64
) -> Spread:
    """Interval for the mean over seeds, of other seeds and other users.

    All seeds are tested on the same users. The variance of the mean has two parts: S² / K, with S²
    the variance between the seeds' estimates, which holds what is a seed's own and what is a seed's
    with a user; and what is the users' own, which moves all seeds alike: the mean covariance of two
    seeds over resamples of the users (0 where noise makes it negative). The interval is the mean
    plus or minus a Student quantile times the root of their sum, with Satterthwaite's degrees of
    freedom: with three seeds a percentile interval would be far too short.

    Of two seeds S² knows little; where seeds differ more than users do, 95 % intervals of two seeds
    cover some 88 %, of three 93 % (docs/decisions/0006-metrics.md).

    Source: variance components of a two-way random layout, Searle, Casella and McCulloch 1992;
        Satterthwaite 1946.

    Args:
        estimate_KM: metrics of each seed on all users; K is at least 2.
        value_KRM: metrics of each seed on each resample of the users.
        level: coverage of the interval.
        users_M: how many users each metric speaks for.
    """
    check_level(level)
    seeds, _, metrics = value_KRM.shape
    estimate_M = estimate_KM.mean(axis=0)
    of_seeds_M = estimate_KM.var(axis=0, ddof=1) / seeds
    of_users_M = np.array([_shared_variance(value_KRM[:, :, m]) for m in range(metrics)])
    variance_M = of_seeds_M + of_users_M
    low_M, high_M, p_value_M, freedom_M = (np.full(metrics, np.nan) for _ in range(4))
    for m in np.flatnonzero(~np.isnan(variance_M)):
        freedom_M[m] = _freedom(of_users_M[m], of_seeds_M[m], seeds, int(users_M[m]))
        error = math.sqrt(variance_M[m])
        student = Student(freedom_M[m])
        half = student.quantile((1 + level) / 2) * error
        low_M[m], high_M[m] = estimate_M[m] - half, estimate_M[m] + half
        p_value_M[m] = student.two_sided(abs(estimate_M[m]) / error) if error else 1.0
    return Spread(estimate_M, low_M, high_M, np.sqrt(variance_M), p_value_M, freedom_M)


def _shared_variance(value_KR: Float64) -> float:
    """Mean covariance of two seeds over resamples, at least 0; NaN where too few are known."""
    known_KR = value_KR[:, ~np.isnan(value_KR).any(axis=0)]
    seeds, known = known_KR.shape
    if known < 2:
        return math.nan
    # The variance of the seeds' sum is that of each, and twice the covariance of each pair.
    alone = known_KR.var(axis=1, ddof=1).sum()
    together = known_KR.sum(axis=0).var(ddof=1)
    return max(0.0, float(together - alone) / (seeds * (seeds - 1)))


def reflect_ece(spread: Spread) -> Spread:
    """Mirror the ECE's interval at its estimate; never below 0, never beside the estimate."""
    low_M, high_M = spread.low_M.copy(), spread.high_M.copy()
    e, centre = _ECE, spread.estimate_M[_ECE]
    low_M[e] = min(centre, max(0.0, 2 * centre - spread.high_M[e]))
    high_M[e] = max(centre, 2 * centre - spread.low_M[e])
    return replace(spread, low_M=low_M, high_M=high_M)


def blank_few(spread: Spread, users_M: Int64, fewest: int = FEWEST_USERS) -> Spread:
    """Leave nothing but the estimate of metrics that speak for fewer users than `fewest`."""
    few_M = users_M < fewest
    blank = {
        name: np.where(few_M, np.nan, getattr(spread, name))
        for name in ("low_M", "high_M", "error_M", "p_value_M")
    }
    return replace(spread, **blank)


def intervals_of(spread: Spread, level: float, resamples: int, users: int) -> Intervals:
    """Name what `spread` holds by position."""
    columns = (spread.estimate_M, spread.low_M, spread.high_M, spread.error_M)
    named = {
        name: Interval(*(float(column_M[m]) for column_M in columns))
        for m, name in enumerate(METRICS)
    }
    return Intervals(**named, level=level, resamples=resamples, users=users)


def check_level(level: float) -> None:
    """Refuse a coverage that is no coverage.

    Raises:
        ValueError: outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}")


@dataclass(frozen=True, slots=True)
class Student:
    """Student's t, integrated numerically.

    With t = sqrt(f) tan(theta), its density is proportional to cos(theta)^(f - 1).
    """

    freedom: float

    def quantile(self, probability: float) -> float:
        """Value below which the probability lies."""
        theta_N, mass_N = self._table()
        return math.tan(float(np.interp(probability, mass_N, theta_N))) * math.sqrt(self.freedom)

    def two_sided(self, t: float) -> float:
        """Probability of a value at least as far from 0 as t."""
        theta_N, mass_N = self._table()
        return 2 * float(np.interp(-math.atan(t / math.sqrt(self.freedom)), theta_N, mass_N))

    def _table(self) -> tuple[Float64, Float64]:
        # All mass lies within some multiples of 1 / sqrt f of 0.
        widest = min(math.pi / 2, 12 / math.sqrt(self.freedom))
        edge_N = np.linspace(-widest, widest, 100_001)
        middle_N = (edge_N[1:] + edge_N[:-1]) / 2
        mass_N = np.concatenate([[0.0], np.cumsum(np.cos(middle_N) ** (self.freedom - 1))])
        return edge_N, mass_N / mass_N[-1]


def _freedom(of_users: float, of_seeds: float, seeds: int, users: int) -> float:
    spread = of_seeds**2 / (seeds - 1) + of_users**2 / max(1, users - 1)
    return min(1e6, (of_users + of_seeds) ** 2 / spread) if spread > 0 else float(seeds - 1)
