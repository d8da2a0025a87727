"""The probe by neighbours: as defined, on training days alone, and only where a log tells."""

import numpy as np
import pytest
from toy import KINDS, make_toy, without_target_history

from lcn.data.dataset import open_dataset
from lcn.experiments.facts import run_neighbours
from lcn.experiments.neighbours import learn_likeness, neighbour_features
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
    features = neighbour_features(dataset, learn_likeness(dataset), "test")
    assert features.shape == (len(dataset.samples["test"]), 5)
    label_S = np.asarray(dataset.samples["test"].label_S)
    for column in (2, 4):
        assert features[label_S == 1, column].mean() > features[label_S == 0, column].mean() + 0.05


def test_likeness_is_the_shrunk_correlation_of_residuals(toy_of_tastes):
    """Worked out from dense tables of users and items."""
    dataset, found = toy_of_tastes, learn_likeness(toy_of_tastes)
    bound, items = dataset.manifest.split.validation_from, len(found.mean_J)
    cross, square, shared = (np.zeros((items, items)) for _ in range(3))
    for user in range(len(dataset.user_UP)):
        numbers, residuals = [], []
        for domain, store in dataset.events.items():
            log = found.events[domain]
            for row in range(store.offsets_U[user], store.offsets_U[user + 1]):
                if store.time_E[row] < bound and not np.isnan(log.residual_E[row]):
                    numbers.append(log.item_E[row])
                    residuals.append(log.residual_E[row])
        own = np.array(residuals) - np.sum(residuals) / (len(residuals) + 10)
        for one, a in zip(numbers, own, strict=True):
            np.add.at(cross[one], numbers, a * own)
            np.add.at(square[one], numbers, a * a)
            np.add.at(shared[one], numbers, 1.0)
    expected = cross / np.sqrt(np.maximum(square * square.T, 1e-12)) * shared / (shared + 50)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found.similar_JJ, expected, atol=2e-5)


def test_responses_after_the_training_days_make_no_likeness(toy_of_tastes):
    before = learn_likeness(toy_of_tastes)
    for domain, store in toy_of_tastes.events.items():
        context = np.array(store.context_EG)
        late = np.asarray(store.time_E) >= toy_of_tastes.manifest.split.validation_from
        assert late.any()
        context[late] = KINDS["seen"]
        np.save(toy_of_tastes.folder / f"events/{domain}/context.npy", context)
    after = learn_likeness(open_dataset(toy_of_tastes.folder))
    for name in ("number_I", "mean_J", "similar_JJ"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_a_log_that_tells_nothing_has_no_such_probe(tmp_path):
    toy = make_toy(tmp_path / "toy")
    write_manifest(toy.folder, toy.manifest.model_copy(update={"mapping": {}}))
    assert run_neighbours(open_dataset(toy.folder)) is None


def test_nothing_is_learnt_where_times_do_not_tell_what_was_known(toy_of_tastes):
    manifest = toy_of_tastes.manifest
    assert learn_likeness(toy_of_tastes) is not None
    write_manifest(toy_of_tastes.folder, manifest.model_copy(update={"late_events": True}))
    assert learn_likeness(open_dataset(toy_of_tastes.folder)) is None
