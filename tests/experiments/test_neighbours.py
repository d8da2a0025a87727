"""The probe by neighbours: as defined, on training days alone, and only where a log tells."""

from dataclasses import replace

import numpy as np
import pytest
from toy import KINDS, make_toy

from lcn.data.dataset import open_dataset
from lcn.experiments.facts import run_neighbours
from lcn.experiments.neighbours import neighbour_features
from lcn.schema import write_manifest


@pytest.fixture
def toy_of_tastes(tmp_path):
    """Two kinds of users like two kinds of items; impressions follow, histories tell."""
    toy = make_toy(tmp_path / "toy", users=150, impressions=30, signal=False, seed=5)
    kind_I, rng = np.arange(len(toy.item_IF)) % 2, np.random.default_rng(0)
    taste_U = np.arange(len(toy.user_UP)) % 2
    for domain, store in toy.events.items():
        user_E = np.repeat(np.arange(len(store.offsets_U) - 1), np.diff(store.offsets_U))
        likes_E = kind_I[store.item_E] == taste_U[user_E]
        likes_E ^= rng.random(len(likes_E)) < 0.1
        code_E = np.where(likes_E, KINDS["liked"], KINDS["seen"]).astype(np.int32)
        np.save(toy.folder / f"events/{domain}/context.npy", code_E[:, None])
    for split, rows in toy.samples.items():
        likes_S = kind_I[rows.item_S] == taste_U[rows.user_S]
        np.save(toy.folder / f"samples/{split}/label.npy", likes_S.astype(np.uint8))
    return open_dataset(toy.folder)


def without_target_history(dataset):
    offsets = dataset.events["target"].offsets_U
    samples = {
        split: replace(rows, target_end_S=offsets[rows.user_S])
        for split, rows in dataset.samples.items()
    }
    return replace(dataset, samples=samples)


def test_taste_of_source_items_is_found_and_chance_is_not(toy_of_tastes):
    probe = run_neighbours(without_target_history(toy_of_tastes), resamples=40)
    assert probe is not None and probe.lift.low > 0.2
    rng = np.random.default_rng(1)
    for domain, store in toy_of_tastes.events.items():
        mixed = rng.permutation(np.asarray(store.context_EG))
        np.save(toy_of_tastes.folder / f"events/{domain}/context.npy", mixed)
    mixed = without_target_history(open_dataset(toy_of_tastes.folder))
    probe = run_neighbours(mixed, resamples=40)
    assert probe is not None and probe.lift.low < 0.02


def test_responses_to_like_items_point_the_right_way_in_both_logs(toy_of_tastes):
    dataset = toy_of_tastes
    features = neighbour_features(dataset, "test")
    assert features is not None and features.shape == (len(dataset.samples["test"]), 5)
    label_S = np.asarray(dataset.samples["test"].label_S)
    for column in (2, 4):
        assert features[label_S == 1, column].mean() > features[label_S == 0, column].mean() + 0.05


def test_responses_after_the_training_days_do_not_make_likeness(toy_of_tastes):
    dataset = toy_of_tastes
    before = neighbour_features(dataset, "validation")
    bound = dataset.manifest.split.validation_from
    for domain, store in dataset.events.items():
        context = np.array(store.context_EG)
        late = np.asarray(store.time_E) >= dataset.manifest.split.test_from
        assert bound < dataset.manifest.split.test_from
        context[late] = KINDS["seen"]
        np.save(dataset.folder / f"events/{domain}/context.npy", context)
    after = neighbour_features(open_dataset(dataset.folder), "validation")
    np.testing.assert_array_equal(before, after)


def test_a_log_that_tells_nothing_has_no_such_probe(tmp_path):
    toy = make_toy(tmp_path / "toy")
    write_manifest(toy.folder, toy.manifest.model_copy(update={"mapping": {}}))
    assert run_neighbours(open_dataset(toy.folder)) is None
