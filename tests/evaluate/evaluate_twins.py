"""Slow twins: definitions written as loops over pairs, and helpers to make predictions."""

import numpy as np

from lcn.evaluate.metrics import sigmoid
from lcn.evaluate.predictions import Predictions


def auc_twin(score, label):
    """Count pairs one by one."""
    positive, negative = score[label == 1], score[label == 0]
    if not len(positive) or not len(negative):
        return np.nan
    won = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return won / (len(positive) * len(negative))


def gauc_twin(score, label, user):
    """Value and coverage, user by user."""
    total, covered = 0.0, 0
    for one in np.unique(user):
        own = user == one
        value = auc_twin(score[own], label[own])
        if not np.isnan(value):
            total += own.sum() * value
            covered += own.sum()
    return (total / covered if covered else np.nan), covered / len(score)


def ece_twin(probability, label, bins):
    """A row's bin is that of the first rank of its predicted value."""
    bin_of = [int((probability < p).sum()) * bins // len(probability) for p in probability]
    total = 0.0
    for one in set(bin_of):
        own = np.array(bin_of) == one
        total += own.sum() * abs(probability[own].mean() - label[own].mean())
    return total / len(probability)


def delong_variance(score, label):
    """DeLong, DeLong and Clarke-Pearson 1988: the variance of AUC by structural components."""
    positive, negative = np.sort(score[label == 1]), np.sort(score[label == 0])

    def above(x, y):
        return (np.searchsorted(y, x, "left") + np.searchsorted(y, x, "right")) / 2 / len(y)

    v10 = above(positive, negative)
    v01 = 1 - above(negative, positive)
    return v10.var(ddof=1) / len(positive) + v01.var(ddof=1) / len(negative)


def make_predictions(logit, label, user, *, sample=None, run="lap", seed=0, split="test"):
    """Predictions of a dataset that exists in name only."""
    return Predictions(
        logit_S=np.asarray(logit, dtype=np.float64),
        label_S=np.asarray(label).astype(np.uint8),
        user_S=np.asarray(user),
        sample_S=np.arange(len(logit)) if sample is None else sample,
        dataset="0123456789abcdef",
        split=split,
        run=run,
        seed=seed,
    )


def simulate(generator, users=200, per_user=10, user_noise=1.0, slope=1.0):
    """Impressions whose labels share a user's own level, so that users, not rows, are independent.

    Returns:
        truth, label, user: log odds without the user's level, and what was observed.
    """
    user = np.repeat(np.arange(users), per_user)
    truth = generator.normal(-0.5, 1.0, users * per_user)
    level = generator.normal(0, user_noise, users)[user]
    label = (generator.random(truth.size) < sigmoid(slope * truth + level)).astype(np.uint8)
    return truth, label, user
