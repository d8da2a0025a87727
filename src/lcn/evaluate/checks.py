"""What every metric demands of its inputs; each message says what to do.

Shapes: S impressions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def checked_score(score_S: ArrayLike, name: str = "score") -> Float64:
    """Return scores as a flat float64 array.

    Raises:
        ValueError: no impressions, more than one axis, or NaN among the scores.
    """
    score_S = np.asarray(score_S, dtype=np.float64)
    if score_S.ndim != 1:
        raise ValueError(
            f"{name} must have one axis (one value per impression), got shape {score_S.shape}; "
            "flatten it first"
        )
    if not score_S.size:
        raise ValueError(f"{name} is empty: there are no impressions to measure; check the split")
    missing = int(np.isnan(score_S).sum())
    if missing:
        raise ValueError(
            f"{name} holds {missing} NaN of {score_S.size} values, the first at row "
            f"{int(np.flatnonzero(np.isnan(score_S))[0])}; a model that predicts NaN cannot be "
            "ranked: mend the model instead of dropping rows"
        )
    return score_S


def checked_label(label_S: ArrayLike, length: int) -> NDArray[np.uint8]:
    """Return labels as uint8 zeros and ones.

    Raises:
        ValueError: another length than the scores, or a value other than 0 and 1.
    """
    label_S = np.asarray(label_S)
    _same_length("label", label_S, length)
    small_S = label_S.astype(np.uint8)
    # Comparing back catches 0.5, -1, 2, NaN and text alike.
    if not (np.array_equal(small_S, label_S) and small_S.max(initial=0) <= 1):
        values = np.unique(label_S)[:5]
        raise ValueError(f"label must be 0 or 1 everywhere, got values such as {values.tolist()}")
    return small_S


def checked_user(user_S: ArrayLike, length: int) -> Int64:
    """Return user addresses as int64.

    Raises:
        ValueError: another length than the scores, or not integers.
    """
    user_S = np.asarray(user_S)
    _same_length("user", user_S, length)
    if user_S.dtype.kind not in "iu":
        raise ValueError(
            f"user must be integers (addresses of a dataset), got {user_S.dtype}; "
            "number the users first, e.g. np.unique(user, return_inverse=True)[1]"
        )
    return user_S.astype(np.int64)


def checked_weight(weight_S: ArrayLike, length: int) -> Float64:
    """Return weights as float64.

    Raises:
        ValueError: another length than the scores, or a negative, NaN or infinite weight.
    """
    weight_S = np.asarray(weight_S, dtype=np.float64)
    _same_length("weight", weight_S, length)
    if not (np.isfinite(weight_S).all() and weight_S.min(initial=0.0) >= 0):
        raise ValueError("weights must be finite and not negative")
    return weight_S


def checked_logit(logit_S: ArrayLike) -> Float64:
    """Return logits as float64; see `checked_score`.

    Raises:
        ValueError: additionally, an infinite logit (its log loss is infinite).
    """
    logit_S = checked_score(logit_S, "logit")
    infinite = int(np.isinf(logit_S).sum())
    if infinite:
        raise ValueError(
            f"logit holds {infinite} infinite values of {logit_S.size}: their log loss is "
            "infinite; keep logits as the model gives them, before any sigmoid or clipping"
        )
    return logit_S


def checked_probability(probability_S: ArrayLike) -> Float64:
    """Return probabilities as float64; see `checked_score`.

    Raises:
        ValueError: additionally, a value outside [0, 1].
    """
    probability_S = checked_score(probability_S, "probability")
    low, high = float(probability_S.min()), float(probability_S.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"probabilities must lie in [0, 1], got values from {low:g} to {high:g}; "
            "are these logits? apply lcn.evaluate.metrics.sigmoid first"
        )
    return probability_S


def _same_length(name: str, array: NDArray, length: int) -> None:
    if array.shape != (length,):
        raise ValueError(
            f"{name} must have one value per impression: expected shape ({length},), "
            f"got {array.shape}"
        )
