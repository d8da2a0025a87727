"""Intervals against slow twins, theory, and simulations of what they promise."""

import numpy as np
import pytest
from evaluate_twins import delong_variance, make_predictions, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from lcn.evaluate.bootstrap import Student, bootstrap, spread_of, spread_over_seeds
from lcn.evaluate.metrics import auc, gauc, losses, measure, sigmoid
from lcn.evaluate.replicate import METRICS, draw_users, estimate, prepare, replicate


def tied(generator, rows=300, users=12):
    logit = generator.normal(size=rows).round(1)
    return logit, generator.integers(0, 2, rows), generator.integers(0, users, rows) * 7


def measure_twin(logit, label, user, weight, edges):
    """Metrics of weighted rows, calibration bins fixed beforehand by their edges in logits."""
    total, clicks, value_N = weight.sum(), weight @ label, sigmoid(logit)
    own = [(gauc(logit[user == u], label[user == u], user[user == u]).value, u) for u in set(user)]
    own = [(v, (user == u).sum() * weight[user == u][0]) for v, u in own if not np.isnan(v)]
    covered = sum(n for _, n in own)
    bin_of = np.searchsorted(edges, logit, side="right")
    gap = sum(abs(weight[bin_of == b] @ (value_N - label)[bin_of == b]) for b in set(bin_of))
    return [
        auc(logit, label, weight),
        sum(v * n for v, n in own) / covered if covered else np.nan,
        weight @ losses(logit, label) / total,
        weight @ value_N / clicks if clicks else np.nan,
        gap / total,
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_replicates_equal_weighted_metrics(seed, rows):
    generator = np.random.default_rng(seed)
    logit, label, user = tied(generator, rows, users=6)
    prepared = prepare(make_predictions(logit, label, user), bins=4)
    value_RM = replicate([prepared], 3, np.random.default_rng(5))[0]
    # The first block of resamples draws from the first child of the generator.
    child = np.random.default_rng(5).spawn(1)[0]
    weight_UL = draw_users(prepared.users, 32, child)
    edges = np.sort(logit)[prepared.edge_B1[1:-1]]
    number = np.unique(user, return_inverse=True)[1]
    for lane in range(3):
        expected = measure_twin(logit, label, user, weight_UL[number, lane].astype(float), edges)
        np.testing.assert_allclose(value_RM[lane], expected, rtol=1e-10, atol=1e-12)


def test_the_estimate_is_the_plain_measurement():
    predictions = make_predictions(*tied(np.random.default_rng(0)))
    metrics = measure(predictions)
    expected = [getattr(metrics, name) for name in METRICS]
    np.testing.assert_allclose(estimate(prepare(predictions)), expected, rtol=1e-12)


def test_draws_are_with_replacement_and_fair():
    weight_UL = draw_users(1000, 32, np.random.default_rng(0))
    np.testing.assert_array_equal(weight_UL.sum(axis=0), 1000)
    assert weight_UL.astype(float).var() == pytest.approx(0.999, rel=0.05)
    np.testing.assert_allclose(weight_UL.mean(axis=1).mean(), 1)


def test_same_generator_same_intervals_whatever_the_threads(monkeypatch):
    predictions = make_predictions(*tied(np.random.default_rng(0)))
    found = []
    for threads in (1, 3, 3):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        found.append(bootstrap(predictions, resamples=100, generator=np.random.default_rng(1)))
    assert found[0] == found[1] == found[2]
    other = bootstrap(predictions, resamples=100, generator=np.random.default_rng(2))
    assert other.auc.low != found[0].auc.low


def test_standard_error_agrees_with_delong_when_users_are_rows():
    generator = np.random.default_rng(4)
    truth, label, _ = simulate(generator, users=4000, per_user=1, user_noise=0)
    predictions = make_predictions(truth, label, np.arange(4000))
    found = bootstrap(predictions, resamples=2000, generator=generator).auc
    delong = np.sqrt(delong_variance(truth, label))
    assert found.standard_error == pytest.approx(delong, rel=0.1)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * delong, rel=0.1)


def test_users_not_rows_are_resampled():
    # Every user 20 times the same: 20 times the rows hold no more knowledge.
    truth, label, _ = simulate(np.random.default_rng(5), users=300, per_user=1)
    once = make_predictions(truth, label, np.arange(300))
    many = make_predictions(
        np.repeat(truth, 20), np.repeat(label, 20), np.repeat(np.arange(300), 20)
    )
    errors = [
        bootstrap(run, resamples=400, generator=np.random.default_rng(0)).auc.standard_error
        for run in (once, many)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)


def test_intervals_cover_what_they_promise():
    generator = np.random.default_rng(6)
    reference = measure(make_predictions(*simulate(generator, users=100_000)))
    trials, covered = 200, dict.fromkeys(METRICS, 0)
    for _ in range(trials):
        predictions = make_predictions(*simulate(generator))
        found = bootstrap(predictions, resamples=250, generator=generator)
        for name in METRICS:
            interval = getattr(found, name)
            covered[name] += interval.low <= getattr(reference, name) <= interval.high
    for name in ("auc", "gauc", "log_loss", "calibration_ratio"):
        # 95 % less a little for 200 users; 4 binomial standard errors of 200 trials are 6 %.
        assert 0.88 <= covered[name] / trials <= 0.99, (name, covered[name] / trials)


def test_what_cannot_be_said_is_nan():
    found = bootstrap(
        make_predictions([0.1, 0.2], [1, 1], [0, 1]),
        resamples=50,
        generator=np.random.default_rng(0),
    )
    assert np.isnan([found.auc.estimate, found.auc.low, found.gauc.high]).all()
    assert np.isfinite([found.log_loss.low, found.ece.high]).all()


def test_one_user_has_estimates_without_intervals():
    logit, label = np.random.default_rng(3).normal(size=(2, 40)).round(1)
    run = make_predictions(logit, label > 0, np.full(40, 7))
    found = bootstrap(run, resamples=50, generator=np.random.default_rng(0))
    for name in METRICS:
        one = getattr(found, name)
        assert np.isfinite(one.estimate)
        assert np.isnan([one.low, one.high, one.standard_error]).all()


def test_gauc_counts_the_users_with_both_labels():
    # The second user has no click: AUC speaks for both users, GAUC for the first alone.
    label = np.r_[np.tile([0, 1], 10), np.zeros(20, int)]
    logit = np.random.default_rng(3).normal(size=40)
    run = make_predictions(logit, label, np.repeat([0, 1], 20))
    found = bootstrap(run, resamples=50, generator=np.random.default_rng(0))
    assert np.isfinite([found.auc.low, found.log_loss.low, found.gauc.estimate]).all()
    assert np.isnan([found.gauc.low, found.gauc.high]).all()


def test_ece_interval_holds_its_estimate_and_zero_at_least():
    generator = np.random.default_rng(8)
    truth = generator.normal(size=3000)
    label = generator.random(3000) < sigmoid(truth)
    found = bootstrap(
        make_predictions(truth, label, np.arange(3000)), resamples=200, generator=generator
    ).ece
    assert 0 <= found.low <= found.estimate <= found.high


def test_errors_teach():
    predictions = make_predictions([0.1, 0.2], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="at least 2 resamples"):
        bootstrap(predictions, resamples=1, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"such as 0\.95"):
        bootstrap(predictions, resamples=10, level=95, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (30, 2.04227), (1e6, 1.95997)],
)
def test_student_quantiles_are_those_of_the_tables(freedom, expected):
    student = Student(freedom)
    assert student.quantile(0.975) == pytest.approx(expected, rel=2e-4)
    assert student.two_sided(expected) == pytest.approx(0.05, rel=2e-4)
    assert student.two_sided(0) == pytest.approx(1)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "of_seed, of_user, of_both", [(1, 0.1, 0.1), (0.1, 1, 0.1), (0.1, 0.1, 1), (1, 1, 1)]
)
def test_intervals_over_seeds_cover_what_they_promise(seeds, of_seed, of_user, of_both):
    """Whatever the noise is particular to: seeds, users, or a seed with a user."""
    generator, users, trials = np.random.default_rng(9), 120, 400
    covered = 0
    for _ in range(trials):
        value_KU = of_seed * generator.normal(size=(seeds, 1)) + np.sqrt(users) * (
            of_user * generator.normal(size=(1, users))
            + of_both * generator.normal(size=(seeds, users))
        )
        drawn_RU = generator.multinomial(users, np.full(users, 1 / users), size=150) / users
        value_KRM = (value_KU @ drawn_RU.T)[:, :, None]
        spread = spread_over_seeds(value_KU.mean(1)[:, None], value_KRM, 0.95, np.array([users]))
        covered += spread.low_M[0] <= 0 <= spread.high_M[0]
    assert 0.91 <= covered / trials <= 0.98


def test_an_interval_over_seeds_leaves_out_resamples_that_say_nothing():
    value_KRM = np.random.default_rng(0).normal(size=(3, 50, 1))
    holed_KRM = np.concatenate([value_KRM, np.full((3, 5, 1), np.nan)], 1)
    estimate_KM = np.array([[0.1], [0.2], [0.4]])
    whole, holed = (
        spread_over_seeds(estimate_KM, each, 0.95, np.array([9])) for each in (value_KRM, holed_KRM)
    )
    assert holed.low_M == pytest.approx(whole.low_M)
    nothing = spread_over_seeds(estimate_KM, np.full((3, 5, 1), np.nan), 0.95, np.array([9]))
    assert np.isnan(nothing.low_M).all() and np.isnan(nothing.p_value_M).all()
    assert nothing.estimate_M == pytest.approx(estimate_KM.mean(0))


def test_a_p_value_of_one_seed_has_no_floor_that_a_correction_could_not_pass():
    generator = np.random.default_rng(0)
    value_RM = generator.normal(0.01, 0.001, (1000, 1))
    clear = spread_of(np.array([0.01]), value_RM, 0.95)
    assert clear.p_value_M[0] < 1e-9
    beside = spread_of(np.array([-0.01]), value_RM, 0.95)
    assert beside.p_value_M[0] == pytest.approx(2 / 1001)
    close = spread_of(np.array([0.0015]), value_RM - 0.0085, 0.95)
    side = (value_RM - 0.0085 <= 0).sum()
    assert side and close.p_value_M[0] == pytest.approx(2 * (side + 1) / 1001)


def test_a_metric_of_few_users_has_the_freedom_of_few():
    """GAUC speaks for users with both labels alone, however many there are beside them."""
    value_KRM = np.random.default_rng(0).normal(size=(1, 80, 2)) + np.zeros((3, 1, 1))
    estimate_KM = np.full((3, 2), 0.1)
    spread = spread_over_seeds(estimate_KM, value_KRM, 0.95, np.array([5, 500]))
    assert spread.freedom_M == pytest.approx([4, 499])
