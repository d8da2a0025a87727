"""Paired comparisons, many comparisons, strata."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from evaluate_twins import make_predictions, simulate
from hypothesis import given
from hypothesis import strategies as st

from lcn.errors import DataError
from lcn.evaluate.bootstrap import bootstrap
from lcn.evaluate.compare import compare, group_runs, holm
from lcn.evaluate.metrics import measure
from lcn.evaluate.replicate import METRICS
from lcn.evaluate.results import result_of
from lcn.evaluate.strata import stratify


@pytest.fixture(scope="module")
def world():
    """A run near the truth and one a little further away."""
    generator = np.random.default_rng(0)
    truth, label, user = simulate(generator, users=400)
    near = truth + generator.normal(0, 0.3, truth.size)
    far = near + generator.normal(0, 0.5, truth.size)
    return near, far, label, user


def pair(world, **changes):
    near, far, label, user = world
    return (
        make_predictions(far, label, user, run="none", **changes),
        make_predictions(near, label, user, run="lap", **changes),
    )


def generator():
    return np.random.default_rng(11)


def test_difference_is_other_minus_reference(world):
    reference, other = pair(world)
    found = compare(reference, other, generator=generator())
    for name in METRICS:
        one = getattr(found, name)
        assert one.reference == pytest.approx(getattr(measure(reference), name))
        assert one.other == pytest.approx(getattr(measure(other), name))
        assert one.difference == pytest.approx(one.other - one.reference)
        assert one.low <= one.high
    assert found.auc.low > 0 and found.auc.p_value < 0.01
    assert found.log_loss.high < 0
    assert (found.reference, found.other, found.seeds) == ("none", "lap", (0,))


def test_swapping_sides_mirrors(world):
    reference, other = pair(world)
    a = compare(reference, other, generator=generator()).auc
    b = compare(other, reference, generator=generator()).auc
    assert (b.low, b.high, b.p_value) == pytest.approx((-a.high, -a.low, a.p_value))


def test_paired_is_narrower_than_unpaired(world):
    reference, other = pair(world)
    paired = compare(reference, other, generator=generator()).auc.standard_error
    errors = [
        bootstrap(run, generator=generator()).auc.standard_error for run in (reference, other)
    ]
    assert paired < 0.5 * np.hypot(*errors)


def test_a_run_does_not_differ_from_itself(world):
    reference, _ = pair(world)
    found = compare(reference, reference, generator=generator())
    for name in METRICS:
        one = getattr(found, name)
        assert (one.difference, one.low, one.high, one.p_value) == (0, 0, 0, 1)


def test_order_of_rows_does_not_matter(world):
    reference, other = pair(world)
    shuffled = other.take(np.random.default_rng(3).permutation(len(other)))
    plain = compare(reference, other, generator=generator())
    mixed = compare(reference, shuffled, generator=generator())
    assert mixed.auc.low == pytest.approx(plain.auc.low, rel=1e-12)
    assert mixed.gauc.difference == pytest.approx(plain.gauc.difference, rel=1e-12)


def test_no_difference_is_found_where_there_is_none():
    rng, rejected, trials = np.random.default_rng(12), 0, 200
    for _ in range(trials):
        truth, label, user = simulate(rng, users=150)
        a, b = (make_predictions(truth + rng.normal(0, 0.5, truth.size), label, user) for _ in "ab")
        rejected += compare(a, b, resamples=250, generator=rng).auc.p_value < 0.05
    assert 0.01 <= rejected / trials <= 0.11


def test_permuted_labels_give_half_within_three_standard_errors(world):
    near, _, label, user = world
    label = np.random.default_rng(5).permutation(label)
    found = bootstrap(make_predictions(near, label, user), generator=generator()).auc
    assert abs(found.estimate - 0.5) < 3 * found.standard_error


def seeds_of(world, run, noise, rng, seeds=4):
    near, _, label, user = world
    return [
        make_predictions(near + rng.normal(0, noise, near.size), label, user, run=run, seed=seed)
        for seed in range(seeds)
    ]


def test_several_seeds_give_the_mean_difference(world):
    rng = np.random.default_rng(6)
    reference, other = seeds_of(world, "none", 0.6, rng), seeds_of(world, "lap", 0.1, rng)
    found = compare(reference[::-1], other, generator=generator())
    expected = np.mean([measure(run).auc for run in other]) - np.mean(
        [measure(run).auc for run in reference]
    )
    assert found.auc.difference == pytest.approx(expected)
    assert found.seeds == (0, 1, 2, 3)
    assert found.auc.low > 0


def test_seeds_that_disagree_widen_the_interval(world):
    near, far, label, user = world
    reference = [make_predictions(far, label, user, run="none", seed=s) for s in range(3)]
    steady = [make_predictions(near, label, user, run="lap", seed=s) for s in range(3)]
    shaky = [
        make_predictions(near + s * 0.6 * (far - near), label, user, run="lap", seed=s)
        for s in range(3)
    ]
    a = compare(reference, steady, generator=generator()).auc
    b = compare(reference, shaky, generator=generator()).auc
    assert b.high - b.low > 1.5 * (a.high - a.low)


def test_result_of_seeds_and_platt(world):
    rng = np.random.default_rng(7)
    test = seeds_of(world, "lap", 0.3, rng, seeds=2)
    near, _, label, user = world
    validation = [
        make_predictions(3 * near, label, user, run="lap", seed=s, split="validation")
        for s in range(2)
    ]
    found = result_of(test, validation, generator=generator(), resamples=200)
    assert found.seeds == (0, 1)
    assert found.intervals.auc.estimate == pytest.approx(np.mean([measure(r).auc for r in test]))
    assert found.platt_log_loss.low < found.platt_log_loss.estimate < found.platt_log_loss.high
    without = result_of(test, generator=generator(), resamples=200)
    assert without.platt_log_loss is None
    assert without.intervals == found.intervals
    with pytest.raises(DataError, match=r"no validation predictions for seeds \[1\]"):
        result_of(test, validation[:1], generator=generator())


def with_validation(world, seeds):
    """Test and validation predictions of some seeds."""
    near, _, label, user = world
    test = seeds_of(world, "lap", 0.3, np.random.default_rng(7), seeds=seeds)
    return test, [
        make_predictions(3 * near, label, user, run="lap", seed=s, split="validation")
        for s in range(seeds)
    ]


@pytest.mark.parametrize("seeds", [1, 3])
def test_platt_intervals_are_the_same_every_time(world, seeds):
    test, validation = with_validation(world, seeds)
    a, b = (
        result_of(test, validation, generator=np.random.default_rng(0), resamples=64)
        for _ in range(2)
    )
    assert a == b


@pytest.mark.parametrize("seeds", [1, 3])
def test_platt_and_raw_log_loss_see_the_same_resamples(world, seeds, monkeypatch):
    monkeypatch.setattr("lcn.evaluate.results.scale_by", lambda validation, test: test)
    test, validation = with_validation(world, seeds)
    drawn = generator()
    drawn.spawn(3)
    found = result_of(test, validation, generator=drawn, resamples=64)
    assert found.platt_log_loss == found.intervals.log_loss


@pytest.mark.parametrize(
    ("change", "teaches"),
    [
        (lambda a, b: (a, []), "no predictions"),
        (lambda a, b: ([a, b], b), r"mixes the runs \['lap', 'none'\]"),
        (lambda a, b: ([a, a], b), "given twice"),
    ],
)
def test_wrong_sides_teach(world, change, teaches):
    with pytest.raises(DataError, match=teaches):
        compare(*change(*pair(world)), generator=generator())


def test_other_seeds_teach(world):
    with pytest.raises(DataError, match=r"needs the same seeds"):
        compare(pair(world, seed=1)[0], pair(world, seed=2)[1], generator=generator())


def test_holm_worked_by_hand():
    # Sorted .005 .01 .03 .04 times 4 3 2 1, never falling: .02 .03 .06 .06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_array_equal(holm([0.02, np.nan, 0.04]), [0.04, np.nan, 0.04])
    assert holm([]).size == 0
    with pytest.raises(ValueError, match="p-values"):
        holm([1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_no_correction_and_bonferroni(values):
    corrected, values = holm(values), np.array(values)
    assert (corrected >= values).all()
    assert (corrected <= np.minimum(1, len(values) * values) + 1e-15).all()


def test_runs_are_grouped_in_order(world):
    none, lap = pair(world)
    again = make_predictions(none.logit_S, none.label_S, none.user_S, run="none", seed=1)
    assert group_runs([none, lap, again]) == ((none, again), (lap,))


def test_a_seed_twice_is_refused_everywhere(world):
    a, b = seeds_of(world, "lap", 0.3, np.random.default_rng(0), seeds=2)
    b = replace(b, seed=0, origin="runs/b")
    for first in (a, replace(a, origin="runs/a")):
        with pytest.raises(DataError, match=r"given twice with seed 0.*each seed once"):
            result_of([first, b], generator=generator(), resamples=10)
    with pytest.raises(DataError, match="runs/a and runs/b"):
        result_of([first, b], generator=generator(), resamples=10)
    validation = [replace(run, split="validation") for run in (a, b)]
    with pytest.raises(DataError, match="given twice"):
        result_of([a], validation, generator=generator(), resamples=10)


def test_other_settings_under_one_name_are_refused(world):
    a, b = seeds_of(world, "lap", 0.3, np.random.default_rng(0), seeds=2)
    a = replace(a, config="k1=100", origin="runs/a")
    b = replace(b, config="k1=200", origin="runs/b")
    teaches = r"two models are called 'lap' \(runs/a and runs/b\).*another `name`"
    with pytest.raises(DataError, match=teaches):
        group_runs([a, b])
    with pytest.raises(DataError, match=teaches):
        result_of([a, b], generator=generator(), resamples=10)
    with pytest.raises(DataError, match=teaches):
        compare([a, b], [a, b], generator=generator(), resamples=10)
    # Not known is not different: files written before there was a digest.
    unknown = replace(b, config="")
    assert result_of([a, unknown], generator=generator(), resamples=10).seeds == (0, 1)


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_user_settles_nothing(world, seeds):
    reference, other = (
        [run.take(run.user_S == 0) for run in seeds_of(world, name, noise, rng, seeds)]
        for name, noise, rng in (("none", 0.9, generator()), ("lap", 0.1, generator()))
    )
    found = compare(reference, other, resamples=50, generator=generator())
    assert found.users == 1
    for name in METRICS:
        one = getattr(found, name)
        assert np.isfinite(one.difference)
        assert np.isnan([one.low, one.high, one.standard_error, one.p_value]).all()
    result = result_of(other, generator=generator(), resamples=50).intervals
    assert np.isnan([result.auc.low, result.ece.low, result.ece.high]).all()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 6))
def test_strata_part_the_impressions(length, bins):
    length = np.array(length)
    strata = stratify(length, bins)
    assert 1 <= len(strata) <= bins
    assert sorted(np.concatenate([s.row_N for s in strata])) == list(range(len(length)))
    assert all(a.longest < b.shortest for a, b in pairwise(strata))


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="at least 1 bin"):
        stratify(np.array([1]), bins=0)
    with pytest.raises(ValueError, match="one integer per impression"):
        stratify(np.array([1.5]))
    with pytest.raises(ValueError, match="not be negative"):
        stratify(np.array([-1]))
