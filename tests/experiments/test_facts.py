"""Facts of a log: counted by hand, and a probe that finds what is planted."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from toy import make_toy, without_target_history

from lcn.cli import cli
from lcn.errors import DataError
from lcn.experiments import facts as facts_module
from lcn.experiments.expect import LIFT, Known, expect, load_known
from lcn.experiments.facts import (
    category_field,
    fit_logistic,
    read_facts,
    run_probe,
    score_logistic,
)
from lcn.schema import Field


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("planted"), users=200, impressions=30, seed=3)


def test_counts_are_those_of_the_data(planted):
    found = read_facts(planted, resamples=10)
    test = planted.samples["test"]
    lengths = np.asarray(test.source_end_S) - planted.events["source"].offsets_U[test.user_S]
    assert found.source_history[2] == int(np.median(lengths))
    assert found.with_source == pytest.approx((lengths > 0).mean())
    assert found.impressions["test"] == len(test)
    assert found.click_rate["test"] == pytest.approx(np.asarray(test.label_S).mean())
    train = planted.samples["train"]
    users = len(set(np.asarray(train.user_S).tolist()))
    assert found.impressions_per_user == pytest.approx(len(train) / users)
    json.dumps(found.numbers())


def test_the_probe_finds_a_planted_signal_and_none_where_there_is_none(tmp_path):
    many = {"users": 800, "impressions": 20, "events": 30, "seed": 3}
    signal = without_target_history(make_toy(tmp_path / "signal", **many))
    assert run_probe(signal, resamples=40).lift.low > 0.05
    noise = without_target_history(make_toy(tmp_path / "noise", signal=False, **many))
    assert run_probe(noise, resamples=40).lift.low < 0


def test_features_use_training_counts_and_the_past_alone(planted):
    """Labels of test impressions and later events must not be seen."""
    before = facts_module._features(planted, "test")
    test = planted.samples["test"]
    flipped = make_flipped(planted)
    np.testing.assert_array_equal(before, facts_module._features(flipped, "test"))
    assert len(before) == len(test)


def make_flipped(dataset):
    test = dataset.samples["test"]
    other = replace(test, label_S=1 - np.asarray(test.label_S))
    return replace(dataset, samples={**dataset.samples, "test": other})


def test_pair_scores_equal_their_twin(planted):
    rows, train = planted.samples["validation"], planted.samples["train"]
    category = np.asarray(planted.item_IF[:, 1])
    store = planted.events["source"]

    def past(split, i):
        first = store.offsets_U[split.user_S[i]]
        return category[store.item_E[first : split.source_end_S[i]]]

    size = category.max() + 1
    shown, clicked = np.zeros((size, size)), np.zeros((size, size))
    for i in range(len(train)):
        events = past(train, i)
        for event in events:
            shown[category[train.item_S[i]], event] += 1 / len(events)
            clicked[category[train.item_S[i]], event] += train.label_S[i] / len(events)
    base = clicked.sum() / shown.sum()
    own = (clicked.sum(1, keepdims=True) + 20 * base) / (shown.sum(1, keepdims=True) + 20)
    rate = (clicked + 20 * own) / (shown + 20)
    odds = np.log(rate / (1 - rate)) - np.log(own / (1 - own))
    expected = [
        odds[category[rows.item_S[i]], past(rows, i)].mean() if len(past(rows, i)) else 0.0
        for i in range(len(rows))
    ]
    np.testing.assert_allclose(facts_module._pair_scores(planted, "validation"), expected)


def test_logistic_regression_finds_its_weights():
    generator = np.random.default_rng(0)
    feature = generator.normal(2.0, [1.0, 5.0, 0.1], size=(20000, 3))
    weight = np.array([0.8, -0.1, 3.0, -5.0])
    chance = 1 / (1 + np.exp(-score_logistic(feature, weight)))
    label = (generator.random(20000) < chance).astype(float)
    np.testing.assert_allclose(fit_logistic(feature, label), weight, atol=0.6, rtol=0.15)


def known(lift, gain, length=100.0):
    facts = {"source": length, LIFT: lift}
    return Known(f"log {lift}", facts, gain, gain - 0.001, gain + 0.001)


def test_expectations_follow_the_nearest_logs_and_warn_outside():
    table = [known(0.0, 0.0), known(0.01, 0.008), known(0.03, 0.03), known(0.03, 0.02, 20.0)]
    near = expect({"source": 100.0, LIFT: 0.0301}, table)
    assert near.gain == pytest.approx(0.03, abs=0.002) and near.low > 0
    assert not near.outside and near.nearest[0].name == "log 0.03"
    assert "expect a gain" in near.words
    none = expect({"source": 100.0, LIFT: 0.0}, table)
    assert none.gain < 0.004
    far = expect({"source": 5000.0, LIFT: 0.2}, table)
    assert set(far.outside) == {"source", LIFT}
    with pytest.raises(DataError, match="other facts"):
        expect({"something": 1.0}, table)
    with pytest.raises(DataError, match="other facts"):
        expect({"source": 1.0}, [])


def test_the_command(planted, tmp_path):
    plain = CliRunner().invoke(cli, ["diagnose", str(planted.folder), "--resamples", "10"])
    assert plain.exit_code == 0 and "AUC gained by counting" in plain.output
    drivers = read_facts(planted, resamples=4).drivers
    points = [
        {"dial": "rho", "value": value, "facts": {name: driver * (1 + value) for name, driver in
         drivers.items()}, "gains": {"LAP": {"gain": value, "low": 0.0, "high": 1.0}}}
        for value in (0.0, 0.5)
    ]  # fmt: skip
    path = tmp_path / "conditions.json"
    path.write_text(json.dumps({"data": {"points": points}}))
    given = ["diagnose", str(planted.folder), "--conditions", str(path), "--json"]
    result = CliRunner().invoke(cli, given)
    tree = json.loads(result.output)
    assert tree["expectation"]["nearest"][0]["name"] == "rho 0"
    path.write_text("{}")
    with pytest.raises(DataError, match="dose-response"):
        load_known(path)


def test_the_field_that_counting_goes_by(planted):
    def of(*fields):
        manifest = planted.manifest.model_copy(
            update={"item_fields": tuple(Field(name=name, size=size) for name, size in fields)}
        )
        return category_field(replace(planted, manifest=manifest))

    assert of(("item", 9000), ("author", 6000), ("tag", 40)) == 2
    assert of(("item", 9000), ("author", 6000), ("brand", 40), ("colour", 5)) == 2
    assert of(("item", 9000), ("author", 6000)) == 1
    assert of(("item", 9000)) == 0
