"""A probe by neighbours: do responses to source items tell responses to target items?

Counting categories misses what a log knows about taste. Where events tell responses, two items are
neighbours as far as the same users responded to both better, or worse, than to other items: the
correlation of residual responses on training days. A target impression is then scored by the
responses to its neighbours in the user's history, with and without those of the source domain.

Shapes: S impressions, I items, J items told apart, U users, E events, X features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from lcn.data.dataset import Dataset
from lcn.data.source_clicks import knows_late, response_labels
from lcn.schema import DOMAINS, Domain, Split

Floats = NDArray[np.float64]
MOST = 4000
"""Items told apart: those with the most responses on training days."""
RECENT = 500
"""Newest events of a history that the probes read."""
_SHARED_PRIOR = 50.0
"""Shared responses of no correlation that every pair of items starts with."""
_MEAN_PRIOR = 10.0
"""Mean responses that every item and user starts with."""
_PAIRED = 500
"""Newest responses of one user in one domain that are paired."""


@dataclass(frozen=True, slots=True)
class _Events:
    """A domain's events, with what is known of the responses."""

    offsets_U: NDArray[np.int64]
    item_E: NDArray[np.int64]
    """Among the J items; -1 for others."""
    residual_E: Floats
    """Response less the item's mean; NaN where it is unknown."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What training days say about items, and the events to score by."""

    number_I: NDArray[np.int64]
    mean_J: Floats
    similar_JJ: NDArray[np.float32]
    events: dict[Domain, _Events]


def learn_likeness(dataset: Dataset) -> Likeness | None:
    """Means and correlations of training days; None where the log tells no responses, or not when
    they were known."""
    told = response_labels(dataset)
    if told is None or knows_late(dataset.manifest):
        return None
    place, label_V = told
    number_I = _numbered(dataset, place, label_V)
    if number_I.max(initial=-1) < 0:
        return None
    mean_J = _item_means(dataset, place, label_V, number_I)
    events: dict[Domain, _Events] = {
        domain: _read(dataset, domain, place, label_V, number_I, mean_J) for domain in DOMAINS
    }
    return Likeness(number_I, mean_J, _correlations(dataset, events, len(mean_J)), events)


def neighbour_features(dataset: Dataset, likeness: Likeness, split: Split) -> Floats:
    """[S, X] item's mean response; the user's mean residual and the neighbours' in the target log;
    last, both in the source log. Histories end before each impression."""
    rows, mean_J = dataset.samples[split], likeness.mean_J
    own_S = likeness.number_I[np.asarray(rows.item_S)]
    item_S = np.where(own_S >= 0, mean_J[own_S], mean_J.mean())
    columns = {}
    for domain, log in likeness.events.items():
        start_S, end_S = dataset.histories(rows, domain, RECENT)
        found_S2 = np.zeros((len(rows), 2))
        _score(log.item_E, log.residual_E, start_S, end_S, own_S, likeness.similar_JJ, found_S2)
        columns[domain] = found_S2
    return np.c_[item_S, columns["target"], columns["source"]]


def _training(dataset: Dataset, domain: Domain) -> NDArray[np.bool_]:
    known_E = np.asarray(dataset.events[domain].time_E) + dataset.manifest.known_after
    return known_E < dataset.manifest.split.validation_from


def _labels(dataset: Dataset, domain: Domain, place: int, label_V: NDArray) -> NDArray[np.int8]:
    return label_V[np.asarray(dataset.events[domain].context_EG[:, place])]


def _numbered(dataset: Dataset, place: int, label_V: NDArray) -> NDArray[np.int64]:
    """[I] number of each item among those with the most known responses; -1 for the rest."""
    count_I = np.zeros(len(dataset.item_IF), np.int64)
    for domain in DOMAINS:
        known_E = (_labels(dataset, domain, place, label_V) >= 0) & _training(dataset, domain)
        item_E = np.asarray(dataset.events[domain].item_E)[known_E]
        count_I += np.bincount(item_E, minlength=len(count_I))
    chosen = np.argsort(-count_I, kind="stable")[:MOST]
    chosen = chosen[count_I[chosen] > 0]
    number_I = np.full(len(count_I), -1, np.int64)
    number_I[chosen] = np.arange(len(chosen))
    return number_I


def _item_means(dataset: Dataset, place: int, label_V: NDArray, number_I: NDArray) -> Floats:
    items = int(number_I.max(initial=-1)) + 1
    total_J, count_J = np.zeros(items), np.zeros(items)
    for domain in DOMAINS:
        label_E = _labels(dataset, domain, place, label_V)
        number_E = number_I[np.asarray(dataset.events[domain].item_E)]
        known_E = (label_E >= 0) & _training(dataset, domain) & (number_E >= 0)
        total_J += np.bincount(number_E[known_E], label_E[known_E], items)
        count_J += np.bincount(number_E[known_E], minlength=items)
    base = total_J.sum() / max(count_J.sum(), 1.0)
    return (total_J + _MEAN_PRIOR * base) / (count_J + _MEAN_PRIOR)


def _read(
    dataset: Dataset,
    domain: Domain,
    place: int,
    label_V: NDArray,
    number_I: NDArray,
    mean_J: Floats,
) -> _Events:
    store = dataset.events[domain]
    label_E = _labels(dataset, domain, place, label_V)
    item_E = number_I[np.asarray(store.item_E)]
    residual_E = label_E.astype(np.float64) - np.where(item_E >= 0, mean_J[item_E], np.nan)
    residual_E[label_E < 0] = np.nan
    return _Events(np.asarray(store.offsets_U), item_E, residual_E)


def _correlations(
    dataset: Dataset, events: dict[Domain, _Events], items: int
) -> NDArray[np.float32]:
    """[J, J] correlations of residual responses over users, drawn to 0 by few shared users."""
    parts = []
    for domain, log in events.items():
        known_E = np.flatnonzero(_training(dataset, domain) & ~np.isnan(log.residual_E))
        user_E = np.repeat(np.arange(len(log.offsets_U) - 1), np.diff(log.offsets_U))
        last_E = np.searchsorted(user_E[known_E], user_E[known_E], "right")
        known_E = known_E[last_E - np.arange(len(known_E)) <= _PAIRED]
        parts.append((user_E[known_E], log.item_E[known_E], log.residual_E[known_E]))
    user_E, item_E, residual_E = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(user_E, kind="stable")
    users = len(events[DOMAINS[0]].offsets_U) - 1
    end_U = np.searchsorted(user_E[order], np.arange(users), "right")
    cross_JJ, square_JJ, shared_JJ = (np.zeros((items, items), np.float32) for _ in range(3))
    _add_pairs(end_U, item_E[order], residual_E[order], cross_JJ, square_JJ, shared_JJ)
    similar_JJ = cross_JJ / np.sqrt(np.maximum(square_JJ * square_JJ.T, 1e-12))
    similar_JJ *= shared_JJ / (shared_JJ + _SHARED_PRIOR)
    np.fill_diagonal(similar_JJ, 0.0)
    return similar_JJ.astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _add_pairs(end_U, item_E, residual_E, cross_JJ, square_JJ, shared_JJ):
    """Products, squares and numbers of every pair of a user's residuals."""
    start = 0
    for end in end_U:
        mean = residual_E[start:end].sum() / (end - start + _MEAN_PRIOR)
        for one in range(start, end):
            first, own = item_E[one], residual_E[one] - mean
            for other in range(start, end):
                second = item_E[other]
                cross_JJ[first, second] += own * (residual_E[other] - mean)
                square_JJ[first, second] += own * own
                shared_JJ[first, second] += 1.0
        start = end


@numba.njit(cache=True, nogil=True)
def _score(item_E, residual_E, start_S, end_S, own_S, similar_JJ, found_S2):
    """The user's mean residual, and the mean of what exceeds it weighed by similarity."""
    for sample in range(len(start_S)):
        total, count = 0.0, 0
        for row in range(start_S[sample], end_S[sample]):
            if not np.isnan(residual_E[row]):
                total += residual_E[row]
                count += 1
        mean = total / (count + _MEAN_PRIOR)
        found_S2[sample, 0] = mean
        if own_S[sample] < 0:
            continue
        match, weight = 0.0, 1.0
        for row in range(start_S[sample], end_S[sample]):
            if not np.isnan(residual_E[row]):
                similar = similar_JJ[own_S[sample], item_E[row]]
                match += similar * (residual_E[row] - mean)
                weight += abs(similar)
        found_S2[sample, 1] = match / weight
