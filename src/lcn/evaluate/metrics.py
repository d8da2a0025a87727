"""Metrics of click predictions, each with its definition; ties count one half everywhere.

Shapes: S impressions, B calibration bins, U users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lcn.evaluate.checks import (
    Float64,
    Int64,
    checked_label,
    checked_logit,
    checked_probability,
    checked_score,
    checked_user,
    checked_weight,
)
from lcn.evaluate.predictions import Predictions
from lcn.evaluate.ranking import (
    Ranking,
    bin_edges,
    number_users,
    rank,
    rank_within_users,
)

BINS = 20
"""Calibration bins unless told otherwise."""


@dataclass(frozen=True, slots=True)
class GroupedAuc:
    """GAUC and how much of the data it speaks for."""

    value: float
    """NaN when no user has both labels."""
    coverage: float
    """Share of impressions whose user has both labels."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far predicted probabilities are from observed click rates."""

    ratio: float
    """Mean prediction over mean label: above 1 the model promises too many clicks. NaN without
    any click."""
    ece: float
    """Expected calibration error, in probability: mean over impressions of the absolute
    difference between mean prediction and click rate of the impression's bin."""
    probability_B: Float64
    """Mean prediction of each bin."""
    rate_B: Float64
    """Click rate of each bin."""
    impressions_B: Int64


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one set of predictions."""

    auc: float
    gauc: float
    gauc_coverage: float
    """Share of impressions that GAUC speaks for."""
    log_loss: float
    """Nats per impression."""
    calibration_ratio: float
    ece: float
    impressions: int
    users: int


def auc(score_S: ArrayLike, label_S: ArrayLike, weight_S: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the share of (clicked, not clicked) pairs ranked rightly.

    AUC = sum over pairs of w+ w- ([s+ > s-] + [s+ = s-] / 2) / (sum of w+ times sum of w-).

    Args:
        score_S: anything that rises with the click probability; infinities are allowed.
        label_S: 0 or 1.
        weight_S: weight of each impression; None weighs all alike.

    Returns:
        A number in [0, 1]; NaN when one of the labels is absent (or weighs nothing).

    Raises:
        ValueError: empty input, unequal lengths, NaN scores, labels other than 0 and 1.
    """
    score_S = checked_score(score_S)
    positive_S = checked_label(label_S, len(score_S)).astype(np.float64)
    negative_S = 1 - positive_S
    if weight_S is not None:
        weight_S = checked_weight(weight_S, len(score_S))
        positive_S, negative_S = positive_S * weight_S, negative_S * weight_S
    return _auc(rank(score_S), positive_S, negative_S)


def gauc(score_S: ArrayLike, label_S: ArrayLike, user_S: ArrayLike) -> GroupedAuc:
    """Grouped AUC: each user's own AUC, averaged with the user's impressions as weight.

    GAUC = sum_u n_u AUC_u / sum_u n_u over the users having both labels here; ties count one
    half; users with one label only are left out, never counted as 0.5.

    Source: Chang et al. 2023 (TWIN), evaluation metrics.

    Args:
        score_S: anything that rises with the click probability.
        label_S: 0 or 1.
        user_S: integer user of each impression.

    Returns:
        The value and the share of impressions it covers.

    Raises:
        ValueError: as for `auc`, and users that are not integers.
    """
    score_S = checked_score(score_S)
    label_S = checked_label(label_S, len(score_S))
    number_S, users = number_users(checked_user(user_S, len(score_S)))
    ranks = rank_within_users(rank(score_S), label_S.astype(np.int64), number_S, users)
    return grouped(ranks.auc_U, ranks.impressions_U)


def grouped(auc_U: Float64, impressions_U: Int64) -> GroupedAuc:
    """Average users' AUC by impressions, leaving out users whose AUC is NaN."""
    both_U = ~np.isnan(auc_U)
    covered = int(impressions_U[both_U].sum())
    value = float(auc_U[both_U] @ impressions_U[both_U]) / covered if covered else np.nan
    return GroupedAuc(value, covered / int(impressions_U.sum()))


def sigmoid(logit_S: ArrayLike) -> Float64:
    """Probabilities of logits, without overflow."""
    logit_S = np.asarray(logit_S, dtype=np.float64)
    small_S = np.exp(-np.abs(logit_S))
    return np.where(logit_S >= 0, 1.0, small_S) / (1.0 + small_S)


def log_loss(logit_S: ArrayLike, label_S: ArrayLike) -> float:
    """Mean negative log likelihood in nats, from logits, so that nothing needs clipping.

    Args:
        logit_S: log odds of a click.
        label_S: 0 or 1.

    Raises:
        ValueError: as for `auc`, and infinite logits.
    """
    logit_S = checked_logit(logit_S)
    return float(losses(logit_S, checked_label(label_S, len(logit_S))).mean())


def losses(logit_S: Float64, label_S: NDArray[np.integer | np.floating]) -> Float64:
    """Negative log likelihood of each impression: log(1 + exp z) - y z, without overflow."""
    softplus_S = np.maximum(logit_S, 0.0) + np.log1p(np.exp(-np.abs(logit_S)))
    return softplus_S - logit_S * label_S.astype(np.float64)


def calibration(probability_S: ArrayLike, label_S: ArrayLike, bins: int = BINS) -> Calibration:
    """Compare predicted probabilities with click rates, in bins of equal mass.

    Bins hold equally many impressions, but impressions of equal prediction are never torn apart,
    so a model with few distinct predictions has fewer bins. ECE is never negative: noise alone
    lifts it to about sqrt(2 B p (1 - p) / (pi S)) for a perfectly calibrated model.

    Args:
        probability_S: predicted click probabilities.
        label_S: 0 or 1.
        bins: how many bins at most.

    Raises:
        ValueError: as for `auc`, and values outside [0, 1].
    """
    probability_S = checked_probability(probability_S)
    label_S = checked_label(label_S, len(probability_S))
    return _calibration(rank(probability_S), probability_S, label_S, bins)


def measure(predictions: Predictions, bins: int = BINS) -> Metrics:
    """Compute every metric with one sort by score and one by user.

    Args:
        predictions: what a model said about a split.
        bins: calibration bins.
    """
    logit_S, label_S = predictions.logit_S.astype(np.float64), predictions.label_S
    ranking = rank(logit_S)
    number_S, users = number_users(predictions.user_S)
    ranks = rank_within_users(ranking, label_S.astype(np.int64), number_S, users)
    by_user = grouped(ranks.auc_U, ranks.impressions_U)
    table = _calibration(ranking, sigmoid(logit_S), label_S, bins)
    return Metrics(
        auc=_auc(ranking, label_S.astype(np.float64), (1 - label_S).astype(np.float64)),
        gauc=by_user.value,
        gauc_coverage=by_user.coverage,
        log_loss=float(losses(logit_S, label_S).mean()),
        calibration_ratio=table.ratio,
        ece=table.ece,
        impressions=len(logit_S),
        users=users,
    )


def _auc(ranking: Ranking, positive_S: Float64, negative_S: Float64) -> float:
    positive_G = np.add.reduceat(positive_S[ranking.order_S], ranking.start_G)
    negative_G = np.add.reduceat(negative_S[ranking.order_S], ranking.start_G)
    pairs = positive_G.sum() * negative_G.sum()
    if pairs == 0:
        return float("nan")
    below_G = np.cumsum(negative_G) - negative_G
    return float(positive_G @ (below_G + 0.5 * negative_G) / pairs)


def _calibration(
    ranking: Ranking, probability_S: Float64, label_S: ArrayLike, bins: int
) -> Calibration:
    edge_B1 = bin_edges(ranking, bins)
    clicks_S = np.asarray(label_S, dtype=np.float64)
    promised_B = np.add.reduceat(probability_S[ranking.order_S], edge_B1[:-1])
    clicks_B = np.add.reduceat(clicks_S[ranking.order_S], edge_B1[:-1])
    impressions_B = np.diff(edge_B1)
    clicks = float(clicks_B.sum())
    return Calibration(
        ratio=float(promised_B.sum()) / clicks if clicks else float("nan"),
        ece=float(np.abs(promised_B - clicks_B).sum()) / len(probability_S),
        probability_B=promised_B / impressions_B,
        rate_B=clicks_B / impressions_B,
        impressions_B=impressions_B,
    )
