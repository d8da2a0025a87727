"""Metrics of many resamples of the users, computed together.

Resampling users multiplies each impression by how often its user was drawn. AUC and ECE then take
one walk over the impressions in an order that never changes; GAUC, log loss and the calibration
ratio are ratios of sums over users.

Shapes: K runs, S impressions, U users, R resamples, L lanes, M metrics, B bins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lcn.evaluate.checks import Float64, Int64
from lcn.evaluate.metrics import BINS, losses, sigmoid
from lcn.evaluate.predictions import Predictions
from lcn.evaluate.ranking import Ranking, bin_edges, number_users, rank, rank_within_users

METRICS = ("auc", "gauc", "log_loss", "calibration_ratio", "ece")
"""The order of the M axis."""

_NEGATIVE, _POSITIVE, _TIED_POSITIVE, _FIRST_TIED_NEGATIVE = np.arange(4, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run sorted once, ready to be walked for any weights of its users."""

    user_S: NDArray[np.uint32]
    """User number of each impression, in score order."""
    kind_S: NDArray[np.uint8]
    residual_S: Float64
    edge_B1: Int64
    sum_U6: Float64
    """Per user: GAUC numerator, GAUC impressions, loss, predictions, clicks, impressions."""

    @property
    def users(self) -> int:
        """Number of users, the things that are resampled."""
        return len(self.sum_U6)

    @property
    def users_M(self) -> Int64:
        """Users that each metric speaks for: GAUC for those with both labels alone."""
        both = int((self.sum_U6[:, 1] > 0).sum())
        return np.array([both if name == "gauc" else self.users for name in METRICS])


def prepare(predictions: Predictions, bins: int = BINS) -> Prepared:
    """Sort a run once for any number of resamples."""
    logit_S = predictions.logit_S.astype(np.float64)
    label_S = predictions.label_S.astype(np.int64)
    ranking = rank(logit_S)
    number_S, users = number_users(predictions.user_S)
    order_S, kind_S = _negatives_first(ranking, label_S)
    probability_S = sigmoid(logit_S)
    return Prepared(
        user_S=number_S[order_S].astype(np.uint32),
        kind_S=kind_S,
        residual_S=(probability_S - label_S)[order_S],
        edge_B1=bin_edges(ranking, bins),
        sum_U6=_sums(ranking, logit_S, label_S, number_S, users),
    )


def estimate(prepared: Prepared) -> Float64:
    """Measure a run on all its impressions: the resample that draws every user once.

    Returns:
        value_M: in the order of `METRICS`.
    """
    from lcn.evaluate.walk import LANES

    return _measure(prepared, np.ones((prepared.users, LANES), dtype=np.uint8))[0]


def replicate(
    prepared_K: Sequence[Prepared], resamples: int, generator: np.random.Generator
) -> Float64:
    """Measure every run on the same resamples of the users.

    Each resample draws as many users as there are, with replacement, with all their impressions.
    Calibration bins stay those of the whole sample.

    Args:
        prepared_K: runs over the same users.
        resamples: how many.
        generator: source of the draws; the result does not depend on how many threads run.

    Returns:
        value_KRM: metrics (in the order of `METRICS`); NaN where a resample leaves one undefined.

    Raises:
        ValueError: fewer than two resamples.
    """
    if resamples < 2:
        raise ValueError(f"an interval needs at least 2 resamples, got {resamples}; 1000 is usual")
    from lcn.evaluate.walk import LANES

    blocks = -(-resamples // LANES)

    def measure_block(child: np.random.Generator) -> Float64:
        weight_UL = draw_users(prepared_K[0].users, LANES, child)
        return np.stack([_measure(prepared, weight_UL) for prepared in prepared_K])

    # The kernel releases the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(max_workers=min(blocks, os.cpu_count() or 1)) as pool:
        value_BKLM = list(pool.map(measure_block, generator.spawn(blocks)))
    return np.concatenate(value_BKLM, axis=1)[:, :resamples]


def draw_users(users: int, lanes: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw users with replacement, once per lane.

    Returns:
        weight_UL: how often each lane drew each user.
    """
    from lcn.evaluate.walk import count_draws

    drawn_LU = generator.integers(0, users, size=(lanes, users), dtype=np.uint32)
    # One byte is enough: among more than 255 users, the chance that one is drawn 256 times is
    # below 1 in 10^500.
    weight_UL = np.zeros((users, lanes), dtype=np.uint8)
    count_draws(drawn_LU, weight_UL)
    return weight_UL


def _measure(prepared: Prepared, weight_UL: NDArray[np.uint8]) -> Float64:
    from lcn.evaluate.walk import add_users, walk

    lanes = weight_UL.shape[1]
    twice_L, gap_L = np.empty(lanes), np.empty(lanes)
    walk(
        prepared.user_S,
        prepared.kind_S,
        prepared.residual_S,
        prepared.edge_B1,
        weight_UL,
        twice_L,
        gap_L,
    )
    total_6L = np.empty((6, lanes))
    add_users(prepared.sum_U6, weight_UL, total_6L)
    won_L, covered_L, loss_L, promised_L, clicks_L, size_L = total_6L
    twice_pairs_L = 2 * clicks_L * (size_L - clicks_L)
    return np.stack(
        [
            _ratio(twice_L, twice_pairs_L),
            _ratio(won_L, covered_L),
            _ratio(loss_L, size_L),
            _ratio(promised_L, clicks_L),
            _ratio(gap_L, size_L),
        ],
        axis=1,
    )


def _ratio(above_L: Float64, below_L: Float64) -> Float64:
    return np.divide(above_L, below_L, out=np.full(len(above_L), np.nan), where=below_L > 0)


def _negatives_first(ranking: Ranking, label_S: Int64) -> tuple[Int64, NDArray[np.uint8]]:
    """Order rows by score, negatives before positives where scores tie, and name their kinds."""
    sorted_S = label_S[ranking.order_S]
    group_S = ranking.group_S[ranking.order_S]
    positive_G = np.add.reduceat(sorted_S, ranking.start_G)
    negative_G = np.diff(ranking.start_G, append=len(label_S)) - positive_G
    below_S = np.cumsum(1 - sorted_S) - (1 - sorted_S)
    above_S = np.cumsum(sorted_S) - sorted_S
    # The place of a row within its group: its turn among the rows of its own label.
    turn_S = np.where(
        sorted_S == 1,
        negative_G[group_S] + above_S - above_S[ranking.start_G][group_S],
        below_S - below_S[ranking.start_G][group_S],
    )
    place_S = ranking.start_G[group_S] + turn_S
    order_S, kind_S = np.empty_like(place_S), np.empty(len(place_S), dtype=np.uint8)
    order_S[place_S] = ranking.order_S
    mixed_G = (positive_G > 0) & (negative_G > 0)
    kind_S[place_S] = np.where(
        sorted_S == 1, np.where(mixed_G[group_S], _TIED_POSITIVE, _POSITIVE), _NEGATIVE
    )
    kind_S[ranking.start_G[mixed_G]] = _FIRST_TIED_NEGATIVE
    return order_S, kind_S


def _sums(
    ranking: Ranking, logit_S: Float64, label_S: Int64, number_S: Int64, users: int
) -> Float64:
    ranks = rank_within_users(ranking, label_S, number_S, users)
    both_U = ~np.isnan(ranks.auc_U)
    covered_U = np.where(both_U, ranks.impressions_U, 0)

    def total(value_S: NDArray) -> Float64:
        return np.bincount(number_S, weights=value_S, minlength=users).astype(np.float64)

    return np.stack(
        [
            np.where(both_U, ranks.auc_U, 0.0) * covered_U,
            covered_U.astype(np.float64),
            total(losses(logit_S, label_S)),
            total(sigmoid(logit_S)),
            total(label_S),
            ranks.impressions_U.astype(np.float64),
        ],
        axis=1,
    )
