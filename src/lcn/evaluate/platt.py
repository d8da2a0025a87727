"""Platt scaling: is a log loss due to ranking, or to a level and a slope two numbers can mend?

Shapes: V validation impressions, S test impressions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from lcn.errors import DataError
from lcn.evaluate.checks import Float64, checked_label, checked_logit
from lcn.evaluate.metrics import log_loss, losses, sigmoid
from lcn.evaluate.predictions import Predictions

_STEPS = 100
_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class Platt:
    """A recalibration: logit' = slope * logit + intercept. Ranking stays while slope > 0."""

    slope: float
    intercept: float

    def scale(self, predictions: Predictions) -> Predictions:
        """Return the predictions recalibrated; measure them like any others."""
        logit_S = predictions.logit_S.astype(np.float64)
        return replace(predictions, logit_S=self.slope * logit_S + self.intercept)


def fit_platt(logit_V: ArrayLike, label_V: ArrayLike) -> Platt:
    """Fit slope and intercept by maximum likelihood.

    Labels are softened to (n+ + 1)/(n+ + 2) and 1/(n- + 2), so that the fit exists even when the
    labels are separable or all alike. Constant logits keep slope 1.

    Source: Platt 1999; Lin, Lin and Weng 2007 (Newton's method with step halving).

    Args:
        logit_V: logits on impressions that were not trained on and will not be tested on.
        label_V: 0 or 1.

    Raises:
        ValueError: empty, NaN or infinite logits, labels other than 0 and 1.
    """
    logit_V = checked_logit(logit_V)
    label_V = checked_label(label_V, len(logit_V))
    positives = int(label_V.sum())
    negatives = len(label_V) - positives
    goal_V = np.where(label_V == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, spread = float(logit_V.mean()), float(logit_V.std())
    if spread <= 1e-12 * max(1.0, abs(centre)):
        mean = float(goal_V.mean())
        return Platt(1.0, float(np.log(mean / (1 - mean))) - centre)
    slope, intercept = _newton((logit_V - centre) / spread, goal_V)
    return Platt(slope / spread, intercept - slope * centre / spread)


def platt_log_loss(validation: Predictions, test: Predictions) -> float:
    """Log loss of the test predictions after Platt scaling fitted on the validation predictions.

    Raises:
        DataError: both are the same split (the fit would have seen the test labels), or the two
            are of different runs or datasets.
    """
    return log_loss(scale_by(validation, test).logit_S, test.label_S)


def scale_by(validation: Predictions, test: Predictions) -> Predictions:
    """Fit on validation predictions, recalibrate test predictions; see `platt_log_loss`."""
    if validation.split == test.split:
        raise DataError(
            f"Platt scaling must be fitted on another split than it is applied to, both are "
            f"{test.split!r}; give the validation predictions first"
        )
    for fact in ("dataset", "run", "seed"):
        if getattr(validation, fact) != getattr(test, fact):
            raise DataError(
                f"validation and test predictions are of different {fact}s: "
                f"{getattr(validation, fact)} and {getattr(test, fact)}; give two splits of one run"
            )
    return fit_platt(validation.logit_S, validation.label_S).scale(test)


def _newton(x_V: Float64, goal_V: Float64) -> tuple[float, float]:
    design_V2 = np.stack([x_V, np.ones_like(x_V)], axis=1)
    weight_2 = np.zeros(2)
    loss = losses(design_V2 @ weight_2, goal_V).mean()
    for _ in range(_STEPS):
        probability_V = sigmoid(design_V2 @ weight_2)
        gradient_2 = design_V2.T @ (probability_V - goal_V) / len(x_V)
        spread_V = probability_V * (1 - probability_V)
        hessian_22 = (design_V2 * spread_V[:, None]).T @ design_V2 / len(x_V)
        step_2 = np.linalg.solve(hessian_22 + 1e-12 * np.eye(2), gradient_2)
        if abs(gradient_2 @ step_2) < _TOLERANCE**2 or not np.isfinite(step_2).all():
            break
        scale = 1.0
        while scale > _TOLERANCE:
            trial = losses(design_V2 @ (weight_2 - scale * step_2), goal_V).mean()
            if trial <= loss:
                break
            scale /= 2
        else:
            break
        weight_2, loss = weight_2 - scale * step_2, trial
    return float(weight_2[0]), float(weight_2[1])
