"""Metrics against brute-force twins, scikit-learn, hand-worked fractions and their own laws."""

from fractions import Fraction

import numpy as np
import pytest
from evaluate_twins import auc_twin, ece_twin, gauc_twin, make_predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from lcn.errors import DataError
from lcn.evaluate.metrics import (
    auc,
    calibration,
    gauc,
    log_loss,
    measure,
    sigmoid,
)
from lcn.evaluate.platt import fit_platt, platt_log_loss, scale_by


def samples(users: int = 5) -> st.SearchStrategy:
    row = st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, users - 1))
    return st.lists(row, min_size=1, max_size=40).map(
        lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True))
    )


@given(samples())
def test_auc_equals_counting_pairs(rows):
    score, label, _ = rows
    assert auc(score, label) == pytest.approx(auc_twin(score, label), nan_ok=True, abs=1e-12)


@given(samples())
def test_26_gauc_equals_counting_pairs_per_user(rows):
    found, expected = gauc(*rows), gauc_twin(*rows)
    assert found.value == pytest.approx(expected[0], nan_ok=True, abs=1e-12)
    assert found.coverage == pytest.approx(expected[1])


@given(samples(), st.data())
def test_integer_weights_are_repetitions(rows, data):
    score, label, _ = rows
    weight = np.array(
        data.draw(st.lists(st.integers(0, 4), min_size=len(score), max_size=len(score)))
    )
    repeated = np.repeat(score, weight), np.repeat(label, weight)
    expected = auc_twin(*repeated)
    assert auc(score, label, weight) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_auc_and_log_loss_agree_with_scikit_learn(decimals):
    generator = np.random.default_rng(0)
    logit = generator.normal(size=5000).round(decimals)
    label = generator.random(5000) < sigmoid(logit)
    assert auc(logit, label) == pytest.approx(roc_auc_score(label, logit), abs=1e-12)
    weight = generator.random(5000)
    weighted = roc_auc_score(label, logit, sample_weight=weight)
    assert auc(logit, label, weight) == pytest.approx(weighted, abs=1e-12)
    assert log_loss(logit, label) == pytest.approx(sklearn_log_loss(label, sigmoid(logit)))


def test_worked_by_hand():
    # User 7: positives .9, .4; negatives .4, .1: pairs won 1 + 1 + 1/2 + 1 of 4 = 7/8.
    # User 9: positive .2, negative .3: 0 of 1. User 4 has one label and is left out.
    score = np.array([0.9, 0.4, 0.4, 0.1, 0.2, 0.3, 0.8])
    label = np.array([1, 1, 0, 0, 1, 0, 1])
    user = np.array([7, 7, 7, 7, 9, 9, 4])
    found = gauc(score, label, user)
    assert found.value == float(Fraction(7, 8) * 4 + Fraction(0) * 2) / 6
    assert found.coverage == float(Fraction(6, 7))
    # All: positives .9 .4 .2 .8 against negatives .4 .1 .3:
    # .9 wins 3, .4 wins 2 + 1/2, .2 wins 1, .8 wins 3: 9.5 of 12.
    assert auc(score, label) == float(Fraction(19, 24))


def test_calibration_worked_by_hand():
    # Two bins: (.1, .3 | clicks 0, 1) and (.6, .8 | clicks 1, 1).
    table = calibration([0.1, 0.8, 0.3, 0.6], [0, 1, 1, 1], bins=2)
    assert table.ratio == pytest.approx(1.8 / 3)
    assert table.ece == pytest.approx(0.5 * abs(0.2 - 0.5) + 0.5 * abs(0.7 - 1.0))
    np.testing.assert_allclose(table.probability_B, [0.2, 0.7])
    np.testing.assert_allclose(table.rate_B, [0.5, 1.0])
    np.testing.assert_array_equal(table.impressions_B, [2, 2])


@given(samples(), st.integers(1, 8))
def test_calibration_equals_its_twin(rows, bins):
    score, label, _ = rows
    probability = sigmoid(score)
    table = calibration(probability, label, bins)
    assert table.ece == pytest.approx(ece_twin(probability, label, bins), abs=1e-12)
    assert table.impressions_B.sum() == len(score)
    assert (np.diff(table.probability_B) > 0).all()


@given(samples())
def test_monotone_transforms_change_nothing(rows):
    score, label, user = rows
    for transformed in (3.0 * score + 7, np.exp(score), score.astype(np.float32) ** 3):
        assert auc(transformed, label) == pytest.approx(auc(score, label), nan_ok=True, abs=1e-15)
        moved, kept = gauc(transformed, label, user), gauc(score, label, user)
        assert moved.value == pytest.approx(kept.value, nan_ok=True, abs=1e-15)


@given(samples())
def test_flipped_labels_and_flipped_scores_mirror(rows):
    score, label, user = rows
    assert auc(score, 1 - label) == pytest.approx(1 - auc(score, label), nan_ok=True, abs=1e-12)
    assert auc(-score, label) == pytest.approx(1 - auc(score, label), nan_ok=True, abs=1e-12)
    mirrored = 1 - gauc(score, label, user).value
    assert gauc(-score, label, user).value == pytest.approx(mirrored, nan_ok=True, abs=1e-12)


@given(samples(), st.randoms(use_true_random=False))
def test_order_of_rows_and_names_of_users_change_nothing(rows, random):
    score, label, user = rows
    order = list(range(len(score)))
    random.shuffle(order)
    far = user.astype(np.int64) * 10**15 - 5
    a = measure(make_predictions(score, label, user), bins=4)
    b = measure(make_predictions(score[order], label[order], far[order]), bins=4)
    for name in a.__slots__:
        expected = getattr(a, name)
        assert getattr(b, name) == pytest.approx(expected, nan_ok=True, abs=1e-12), name


@given(samples())
def test_duplicating_every_user_changes_nothing(rows):
    score, label, user = rows
    twice = np.tile(score, 2), np.tile(label, 2), np.concatenate([user, user + 100])
    a, b = measure(make_predictions(*rows), bins=4), measure(make_predictions(*twice), bins=4)
    assert (b.impressions, b.users) == (2 * a.impressions, 2 * a.users)
    for name in ("auc", "gauc", "gauc_coverage", "log_loss", "calibration_ratio", "ece"):
        expected = getattr(a, name)
        assert getattr(b, name) == pytest.approx(expected, nan_ok=True, abs=1e-12), name


@given(samples())
def test_measure_gathers_the_single_metrics(rows):
    score, label, user = rows
    found = measure(make_predictions(*rows), bins=5)
    table = calibration(sigmoid(score), label, bins=5)
    expected = (
        auc(score, label),
        gauc(*rows).value,
        log_loss(score, label),
        table.ratio,
        table.ece,
    )
    measured = (found.auc, found.gauc, found.log_loss, found.calibration_ratio, found.ece)
    assert measured == pytest.approx(expected, nan_ok=True, abs=1e-12)
    assert (found.impressions, found.users) == (len(score), len(np.unique(user)))


def test_permuted_labels_give_half():
    generator = np.random.default_rng(1)
    score, label = generator.normal(size=20_000), generator.permutation(20_000) < 3000
    # Standard error under no relation: sqrt((n + 1) / (12 n+ n-)).
    error = np.sqrt(20_001 / (12 * 3000 * 17_000))
    assert abs(auc(score, label) - 0.5) < 3 * error


def test_one_label_is_nan_without_a_warning():
    assert np.isnan(auc([0.1, 0.2], [1, 1]))
    assert np.isnan(auc([0.1, 0.2], [0, 1], weight_S=[0.0, 1.0]))
    found = gauc([0.1, 0.2], [0, 1], [3, 4])
    assert np.isnan(found.value) and found.coverage == 0
    assert np.isnan(calibration([0.1, 0.2], [0, 0]).ratio)


def test_far_logits_do_not_overflow():
    assert log_loss([-1000.0, 1000.0], [0, 1]) == 0
    assert log_loss([-1000.0, 1000.0], [1, 0]) == 1000
    np.testing.assert_array_equal(sigmoid([-1000.0, 0.0, 1000.0]), [0, 0.5, 1])


@pytest.mark.parametrize(
    ("call", "teaches"),
    [
        (lambda: auc([], []), "no impressions"),
        (lambda: auc([0.1, np.nan], [0, 1]), "1 NaN of 2 values, the first at row 1"),
        (lambda: auc([[0.1], [0.2]], [0, 1]), "flatten"),
        (lambda: auc([0.1, 0.2], [0, 2]), "label must be 0 or 1"),
        (lambda: auc([0.1, 0.2], [0, 0.5]), "label must be 0 or 1"),
        (lambda: auc([0.1, 0.2], [0, 256]), "label must be 0 or 1"),
        (lambda: auc([0.1, 0.2], [0]), r"expected shape \(2,\)"),
        (lambda: auc([0.1, 0.2], [0, 1], [1, -1]), "not negative"),
        (lambda: gauc([0.1, 0.2], [0, 1], [0.5, 1]), "np.unique"),
        (lambda: log_loss([np.inf], [1]), "before any sigmoid"),
        (lambda: calibration([-2.0], [1]), "are these logits"),
        (lambda: calibration([0.2], [1], bins=0), "at least 1 bin"),
    ],
)
def test_errors_teach(call, teaches):
    with pytest.raises(ValueError, match=teaches):
        call()


def test_platt_finds_the_distortion():
    generator = np.random.default_rng(2)
    truth = generator.normal(-1, 1.5, size=200_000)
    label = generator.random(truth.size) < sigmoid(truth)
    fitted = fit_platt(2 * truth + 3, label)
    assert fitted.slope == pytest.approx(0.5, abs=0.01)
    assert fitted.intercept == pytest.approx(-1.5, abs=0.03)


@settings(max_examples=50)
@given(samples())
def test_platt_always_exists_and_is_optimal(rows):
    score, label, _ = rows
    fitted = fit_platt(score, label)
    assert np.isfinite([fitted.slope, fitted.intercept]).all()
    positives, negatives = (label == 1).sum(), (label == 0).sum()
    goal = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    residual = sigmoid(fitted.slope * score + fitted.intercept) - goal
    assert abs(residual.mean()) < 1e-6
    if score.std() > 0:
        assert abs((residual * score).mean()) < 1e-6


def test_platt_log_loss_never_sees_the_test_labels():
    generator = np.random.default_rng(3)
    truth = generator.normal(size=4000)
    label = generator.random(4000) < sigmoid(truth)
    user = generator.integers(0, 50, 4000)
    validation = make_predictions(4 * truth[:2000], label[:2000], user[:2000], split="validation")
    test = make_predictions(4 * truth[2000:], label[2000:], user[2000:])
    assert platt_log_loss(validation, test) < log_loss(test.logit_S, test.label_S) - 0.1
    assert measure(scale_by(validation, test)).auc == measure(test).auc
    with pytest.raises(DataError, match="another split"):
        platt_log_loss(test, test)
    other = make_predictions(truth[:2000], label[:2000], user[:2000], split="validation", seed=1)
    with pytest.raises(DataError, match="different seeds"):
        platt_log_loss(other, test)
