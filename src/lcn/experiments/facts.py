"""Facts of a log that decide whether a lifelong source history can help, without training a model.

The probe is a counting predictor: how often impressions of a target category are clicked by users
whose source history holds a source category. If adding it to what the target log alone tells
raises AUC, the source history says something about target clicks.

Shapes: S impressions, A source categories, B target categories, X features, E events, U users.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from lcn.data.dataset import Dataset, Samples
from lcn.evaluate.compare import Difference, compare
from lcn.evaluate.metrics import sigmoid
from lcn.evaluate.predictions import Predictions
from lcn.experiments.expect import LIFT
from lcn.experiments.neighbours import RECENT, learn_likeness, neighbour_features
from lcn.schema import Split

Floats = NDArray[np.float64]
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_MEASURED: tuple[Split, Split] = ("validation", "test")
LARGEST = 2000
"""Categories that are told apart at most."""
_PRIOR = 20.0
"""Impressions' worth of the mean click rate that every count starts with."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What counting tells: AUC of the target log alone, and of both logs."""

    target_auc: float
    both_auc: float
    lift: Difference
    """In AUC, with its interval over users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """The facts of a prepared dataset."""

    name: str
    fingerprint: str
    users: int
    target_items: int
    impressions: dict[str, int]
    click_rate: dict[str, float]
    source_history: tuple[int, ...]
    """Quantiles (`QUANTILES`) of source events before a test impression."""
    target_history: tuple[int, ...]
    """Likewise of target events."""
    with_source: float
    """Share of test impressions whose user has any source event before."""
    impressions_per_user: float
    """Training impressions per user that has any."""
    clicks_per_item: float
    """Training clicks per shown target item."""
    category_information: float
    """Mutual information between the category of a clicked target item and the user's most
    frequent source category, as a share of the former's entropy, less what chance would show."""
    probe: Probe
    neighbours: Probe | None
    """Likewise by responses to neighbours of the item; None where the log tells no responses."""

    @property
    def drivers(self) -> dict[str, float]:
        """The few facts that expectations are read from, on scales where differences compare."""
        return {
            "source events before an impression (median)": float(self.source_history[2]),
            "target events before an impression (median)": float(self.target_history[2]),
            LIFT: self.probe.lift.difference,
        }

    def numbers(self) -> dict[str, Any]:
        """As a tree for JSON."""
        return {**asdict(self), "drivers": self.drivers}


def read_facts(dataset: Dataset, *, resamples: int = 200, seed: int = 0) -> LogFacts:
    """Measure a dataset; nothing is trained but a logistic regression of six numbers.

    Args:
        dataset: prepared.
        resamples: of the probe's interval.
        seed: of the resampling.
    """
    train, test = dataset.samples["train"], dataset.samples["test"]
    source, target = (dataset.lengths(test, domain) for domain in ("source", "target"))
    clicked = np.asarray(train.label_S) == 1
    return LogFacts(
        name=dataset.manifest.name,
        fingerprint=dataset.manifest.fingerprint,
        users=dataset.manifest.count.users - 1,
        target_items=len(np.unique(np.asarray(train.item_S))),
        impressions={split: len(rows) for split, rows in dataset.samples.items()},
        click_rate={
            split: float(np.asarray(rows.label_S).mean()) if len(rows) else float("nan")
            for split, rows in dataset.samples.items()
        },
        source_history=_quantiles(source),
        target_history=_quantiles(target),
        with_source=float((source > 0).mean()),
        impressions_per_user=len(train) / max(len(np.unique(np.asarray(train.user_S))), 1),
        clicks_per_item=int(clicked.sum()) / max(len(np.unique(np.asarray(train.item_S))), 1),
        category_information=_information(dataset),
        probe=run_probe(dataset, resamples=resamples, seed=seed),
        neighbours=run_neighbours(dataset, resamples=resamples, seed=seed),
    )


def run_probe(dataset: Dataset, *, resamples: int = 200, seed: int = 0) -> Probe:
    """Count on training, weigh the counts on validation, measure on test."""
    return _measure(
        dataset,
        {split: _features(dataset, split) for split in _MEASURED},
        resamples=resamples,
        seed=seed,
    )


def run_neighbours(dataset: Dataset, *, resamples: int = 200, seed: int = 0) -> Probe | None:
    """Neighbours of training, weighed on validation, measured on test; None without responses."""
    likeness = learn_likeness(dataset)
    if likeness is None:
        return None
    features: dict[Split, Floats] = {
        split: neighbour_features(dataset, likeness, split) for split in _MEASURED
    }
    return _measure(dataset, features, resamples=resamples, seed=seed)


def _measure(
    dataset: Dataset, features: dict[Split, Floats], *, resamples: int, seed: int
) -> Probe:
    """AUC with and without the source log's features, the last two."""
    label = {split: np.asarray(dataset.samples[split].label_S) for split in _MEASURED}
    scores = {}
    for kind, columns in (("target", slice(0, -2)), ("both", slice(0, None))):
        weight_X = fit_logistic(features["validation"][:, columns], label["validation"])
        scores[kind] = score_logistic(features["test"][:, columns], weight_X)
    target, both = (
        _as_predictions(dataset, scores[kind], f"counts, {kind}") for kind in ("target", "both")
    )
    lift = compare(target, both, resamples=resamples, generator=np.random.default_rng(seed)).auc
    return Probe(lift.reference, lift.other, lift)


def category_field(dataset: Dataset) -> int:
    """Place of the item field that counting goes by.

    The field of a usual name for categories; else the one with the most values up to `LARGEST`;
    else, without any, the item itself.
    """
    fields = dataset.manifest.item_fields
    names = [field.name for field in fields]
    for name in ("category", "tag", "genres", "genre", "cate"):
        if name in names:
            return names.index(name)
    fitting = [place for place in range(1, len(fields)) if fields[place].size <= LARGEST]
    return max(fitting, key=lambda place: fields[place].size, default=min(1, len(fields) - 1))


def _categories(dataset: Dataset) -> NDArray[np.int64]:
    """[I] category of every item address; beyond `LARGEST` of them the rest counts as one."""
    category_I = np.asarray(dataset.item_IF[:, category_field(dataset)], np.int64)
    return np.minimum(category_I, LARGEST - 1)


def _features(dataset: Dataset, split: Split) -> Floats:
    """[S, X] log-odds of clicks by item, category and user, the user's taste for the category in
    the target log; last, what the source log adds: its taste, and its categories' click rates."""
    train, rows = dataset.samples["train"], dataset.samples[split]
    category_I = _categories(dataset)
    size = int(category_I.max()) + 1
    base = float(np.asarray(train.label_S).mean())
    item_S, user_S = np.asarray(rows.item_S), np.asarray(rows.user_S)
    own_S = category_I[item_S]
    counted = [
        _rate(np.asarray(train.item_S), train, len(category_I), base)[item_S],
        _rate(category_I[np.asarray(train.item_S)], train, size, base)[own_S],
        _rate(np.asarray(train.user_S), train, len(dataset.user_UP), base)[user_S],
    ]
    taste = {}
    for domain in ("target", "source"):
        start_S, end_S = dataset.histories(rows, domain, RECENT)
        event_E = category_I[np.asarray(dataset.events[domain].item_E)]
        share = np.bincount(event_E, minlength=size) / max(len(event_E), 1)
        found_S = np.empty(len(rows))
        _count_own(event_E, start_S, end_S, own_S, found_S)
        # Log ratio of the user's share of the category to everyone's, drawn to 0 by few events.
        expected_S = share[own_S] * (end_S - start_S)
        taste[domain] = np.log((found_S + 1.0) / (expected_S + 1.0))
    return np.stack([*counted, taste["target"], taste["source"], _pair_scores(dataset, split)], 1)


def _pair_scores(dataset: Dataset, split: Split) -> Floats:
    """[S] mean over the user's source categories of the log-odds that such users click this
    target category, relative to the category's own."""
    train, rows = dataset.samples["train"], dataset.samples[split]
    category_I = _categories(dataset)
    size = int(category_I.max()) + 1
    store = dataset.events["source"]
    event_E = category_I[np.asarray(store.item_E)]
    shown_BA, clicked_BA = np.zeros((size, size)), np.zeros((size, size))
    start_S, end_S = dataset.histories(train, newest=RECENT)
    own_S = category_I[np.asarray(train.item_S)]
    _count_pairs(event_E, start_S, end_S, own_S, np.asarray(train.label_S), shown_BA, clicked_BA)
    total_B = shown_BA.sum(1, keepdims=True)
    base = clicked_BA.sum() / max(shown_BA.sum(), 1e-9)
    rate_B = (clicked_BA.sum(1, keepdims=True) + _PRIOR * base) / (total_B + _PRIOR)
    rate_BA = (clicked_BA + _PRIOR * rate_B) / (shown_BA + _PRIOR)
    odds_BA = _log_odds(rate_BA) - _log_odds(rate_B)
    score_S = np.empty(len(rows))
    start_S, end_S = dataset.histories(rows, newest=RECENT)
    _score_pairs(event_E, start_S, end_S, category_I[np.asarray(rows.item_S)], odds_BA, score_S)
    return score_S


def _information(dataset: Dataset) -> float:
    """See `LogFacts.category_information`."""
    train = dataset.samples["train"]
    category_I = _categories(dataset)
    size = int(category_I.max()) + 1
    clicked = np.flatnonzero(np.asarray(train.label_S) == 1)
    start_S, end_S = dataset.histories(train, newest=RECENT)
    known = clicked[end_S[clicked] > start_S[clicked]]
    if not len(known):
        return float("nan")
    top_S = np.empty(len(known), np.int64)
    event_E = category_I[np.asarray(dataset.events["source"].item_E)]
    _most_frequent(event_E, start_S[known], end_S[known], size, top_S)
    own_S = category_I[np.asarray(train.item_S)[known]]
    observed, entropy = _mutual(own_S, top_S, size)
    mixed_S = np.random.default_rng(0).permutation(top_S)
    chance, _ = _mutual(own_S, mixed_S, size)
    return float((observed - chance) / entropy) if entropy > 0 else float("nan")


def _mutual(own_S: NDArray, top_S: NDArray, size: int) -> tuple[float, float]:
    joint = np.bincount(own_S * size + top_S, minlength=size * size).reshape(size, size)
    joint = joint / joint.sum()
    own, top = joint.sum(1), joint.sum(0)
    seen = joint > 0
    expected = (own[:, None] * top[None, :])[seen]
    mutual = float((joint[seen] * np.log(joint[seen] / expected)).sum())
    return mutual, float(-(own[own > 0] * np.log(own[own > 0])).sum())


def fit_logistic(
    feature_SX: Floats, label_S: NDArray, *, ridge: float = 1.0, steps: int = 30
) -> Floats:
    """Weights of a logistic regression with intercept (last), by Newton's method.

    Args:
        feature_SX: standardised inside, the weights are of the given scale.
        label_S: 0 or 1.
        ridge: penalty on standardised weights.
        steps: Newton steps.
    """
    centre_X, spread_X = feature_SX.mean(0), np.maximum(feature_SX.std(0), 1e-9)
    x_SX = np.c_[(feature_SX - centre_X) / spread_X, np.ones(len(feature_SX))]
    penalty_X = np.r_[np.full(x_SX.shape[1] - 1, ridge), 1e-6]
    weight_X = np.zeros(x_SX.shape[1])
    for _ in range(steps):
        probability_S = sigmoid(x_SX @ weight_X)
        slope_X = x_SX.T @ (probability_S - label_S) + penalty_X * weight_X
        spread_S = np.maximum(probability_S * (1 - probability_S), 1e-6)
        curve_XX = (x_SX * spread_S[:, None]).T @ x_SX + np.diag(penalty_X)
        change_X = np.linalg.solve(curve_XX, slope_X)
        weight_X = weight_X - change_X
        if np.abs(change_X).max() < 1e-8:
            break
    scaled_X = weight_X[:-1] / spread_X
    return np.r_[scaled_X, weight_X[-1] - centre_X @ scaled_X]


def score_logistic(feature_SX: Floats, weight_X: Floats) -> Floats:
    """Logits."""
    return feature_SX @ weight_X[:-1] + weight_X[-1]


def _as_predictions(dataset: Dataset, logit_S: Floats, run: str) -> Predictions:
    rows = dataset.samples["test"]
    return Predictions(
        logit_S=logit_S,
        label_S=np.asarray(rows.label_S),
        user_S=np.asarray(rows.user_S, np.int64),
        sample_S=np.arange(len(rows)),
        dataset=dataset.manifest.fingerprint,
        split="test",
        run=run,
        seed=0,
    )


def _rate(key_S: NDArray, train: Samples, size: int, base: float) -> Floats:
    """Log-odds of a click by key, drawn to the mean by few impressions."""
    shown = np.bincount(key_S, minlength=size)
    clicks = np.bincount(key_S, weights=np.asarray(train.label_S, np.float64), minlength=size)
    return _log_odds((clicks + _PRIOR * base) / (shown + _PRIOR))


def _log_odds(rate: Floats) -> Floats:
    rate = np.clip(rate, 1e-6, 1 - 1e-6)
    return np.log(rate / (1 - rate))


def _quantiles(length_S: NDArray[np.int64]) -> tuple[int, ...]:
    if not len(length_S):
        return (0,) * len(QUANTILES)
    return tuple(int(value) for value in np.quantile(length_S, QUANTILES))


@numba.njit(cache=True, nogil=True)
def _count_own(event_E, start_S, end_S, own_S, found_S):
    for sample in range(len(start_S)):
        count = 0
        for row in range(start_S[sample], end_S[sample]):
            count += event_E[row] == own_S[sample]
        found_S[sample] = count


@numba.njit(cache=True, nogil=True)
def _count_pairs(event_E, start_S, end_S, own_S, label_S, shown_BA, clicked_BA):
    for sample in range(len(start_S)):
        length = end_S[sample] - start_S[sample]
        if length == 0:
            continue
        share, own = 1.0 / length, own_S[sample]
        for row in range(start_S[sample], end_S[sample]):
            shown_BA[own, event_E[row]] += share
            clicked_BA[own, event_E[row]] += share * label_S[sample]


@numba.njit(cache=True, nogil=True)
def _score_pairs(event_E, start_S, end_S, own_S, odds_BA, score_S):
    for sample in range(len(start_S)):
        length = end_S[sample] - start_S[sample]
        total = 0.0
        for row in range(start_S[sample], end_S[sample]):
            total += odds_BA[own_S[sample], event_E[row]]
        score_S[sample] = total / length if length else 0.0


@numba.njit(cache=True, nogil=True)
def _most_frequent(event_E, start_S, end_S, size, top_S):
    count = np.zeros(size, np.int64)
    for sample in range(len(start_S)):
        count[:] = 0
        for row in range(start_S[sample], end_S[sample]):
            count[event_E[row]] += 1
        top_S[sample] = np.argmax(count)
