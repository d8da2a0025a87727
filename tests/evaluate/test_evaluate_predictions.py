"""Predictions on disk, and what cannot be aligned."""

import json
from dataclasses import replace

import numpy as np
import pytest
from evaluate_twins import make_predictions

from lcn.errors import DataError
from lcn.evaluate.predictions import align, load_predictions


@pytest.fixture
def run():
    return make_predictions([0.5, -1, 2], [1, 0, 1], [4, 4, 9], sample=np.array([2, 0, 1]))


def test_saved_is_loaded(run, tmp_path):
    path = run.save(tmp_path / "new" / "lap.npz")
    found = load_predictions(path)
    for name in ("logit_S", "label_S", "user_S", "sample_S"):
        np.testing.assert_array_equal(getattr(found, name), getattr(run, name))
        assert getattr(found, name).dtype == getattr(run, name).dtype
    facts = (found.dataset, found.split, found.run, found.seed)
    assert facts == (run.dataset, run.split, run.run, run.seed)
    assert [file.name for file in path.parent.iterdir()] == ["lap.npz"]
    assert path.read_bytes() == run.save(tmp_path / "again.npz").read_bytes()


def test_settings_are_saved_and_unknown_in_older_files(run, tmp_path):
    path = replace(run, config="0123").save(tmp_path / "new.npz")
    found = load_predictions(path)
    assert (found.config, found.origin) == ("0123", str(path))
    facts = {"format_version": 1, "dataset": "d", "split": "test", "run": "lap", "seed": 0}
    columns = {name: getattr(run, name) for name in ("logit_S", "label_S", "user_S", "sample_S")}
    np.savez(tmp_path / "old.npz", facts=np.array(json.dumps(facts)), **columns)
    assert load_predictions(tmp_path / "old.npz").config == ""


def test_unwritable_folder_teaches(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder"):
        run.save(tmp_path / "file" / "lap.npz")


def test_float32_logits_stay_float32(run, tmp_path):
    small = replace(run, logit_S=run.logit_S.astype(np.float32))
    assert load_predictions(small.save(tmp_path / "a.npz")).logit_S.dtype == np.float32


def test_damage_teaches(run, tmp_path):
    path = run.save(tmp_path / "lap.npz")
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="predict again"):
            load_predictions(path)
    with pytest.raises(DataError, match="does not exist"):
        load_predictions(tmp_path / "other.npz")
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(DataError, match="predict again"):
        load_predictions(tmp_path / "plain.npy")


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", facts=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="predict again"):
        load_predictions(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    ("facts", "teaches"),
    [
        ({"format_version": 99}, "format 99, this program reads 1"),
        ({"format_version": 1}, "'dataset'"),
    ],
)
def test_other_versions_teach(run, tmp_path, facts, teaches):
    columns = {name: getattr(run, name) for name in ("logit_S", "label_S", "user_S", "sample_S")}
    np.savez(tmp_path / "a.npz", facts=np.array(json.dumps(facts)), **columns)
    with pytest.raises(DataError, match=teaches):
        load_predictions(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("changes", "teaches"),
    [
        ({"logit_S": np.array([np.nan, 0, 0])}, "'lap'.*1 NaN of 3"),
        ({"logit_S": np.array([np.inf, 0, 0])}, "infinite"),
        ({"label_S": np.array([0, 1])}, r"expected shape \(3,\)"),
        ({"label_S": np.array([0, 1, 2])}, "0 or 1"),
        ({"user_S": np.array(["a", "b", "c"])}, "integers"),
        ({"sample_S": np.array([0, 0, 1])}, "only 2 different ones"),
        (
            {name: np.array([], int) for name in ("logit_S", "label_S", "user_S", "sample_S")},
            "empty",
        ),
    ],
)
def test_impossible_predictions_teach(run, changes, teaches):
    with pytest.raises(DataError, match=teaches):
        replace(run, **changes)


def test_aligning_puts_samples_in_order(run):
    other = run.take(np.array([2, 0, 1]))
    for found in align([run, other]):
        np.testing.assert_array_equal(found.sample_S, [0, 1, 2])
        np.testing.assert_array_equal(found.logit_S, [-1, 2, 0.5])


@pytest.mark.parametrize(
    ("changes", "teaches"),
    [
        ({"dataset": "another"}, "different datasets"),
        ({"split": "validation"}, "different splits"),
        ({"sample_S": np.array([2, 0, 7])}, "1 only in the first, 1 only in the second, 2 in both"),
        (
            {"label_S": np.array([1, 1, 1])},
            "disagree on the label of 1 samples, the first is sample 0",
        ),
        (
            {"user_S": np.array([4, 4, 8])},
            "disagree on the user of 1 samples, the first is sample 1",
        ),
    ],
)
def test_what_cannot_be_aligned_teaches(run, changes, teaches):
    with pytest.raises(DataError, match=teaches):
        align([run, replace(run, **changes)])


def test_nothing_to_align_teaches():
    with pytest.raises(DataError, match="at least one"):
        align([])
