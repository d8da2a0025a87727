"""What is measured of rows, given their predictions; nothing is trained here."""

import numpy as np
import pytest
from tiny_experiments import workspace_of

from lcn.data.dataset import open_dataset
from lcn.evaluate.predictions import Predictions
from lcn.experiments.measure import history_lengths, measure
from lcn.experiments.rows import Row, Table
from lcn.experiments.runner import Fitted, Workspace


def fitted_row(workspace: Workspace, row: Row, seed: int, *, shuffled: bool = False) -> Fitted:
    """A row whose predictions are drawn by lot, saved in the samples' order or in any."""
    config, generator = workspace.resolve(row), np.random.default_rng(seed)
    for split in ("validation", "test"):
        samples = open_dataset(workspace.dataset).samples[split]
        predictions = Predictions(
            logit_S=generator.normal(size=len(samples)),
            label_S=np.asarray(samples.label_S),
            user_S=np.asarray(samples.user_S, np.int64),
            sample_S=np.arange(len(samples)),
            dataset=workspace.store.fingerprint,
            split=split,
            run=row.name,
            seed=0,
        )
        if shuffled:
            predictions = predictions.take(np.random.default_rng(9).permutation(len(samples)))
        predictions.save(workspace.store.run_folder(config) / "predictions" / f"{split}.npz")
    return Fitted(row, runs=(config,))


def measured_lengths(dataset, root, *lengths, shuffled=False):
    rows = tuple(Row(f"N={n}", "sim_soft", (f"batch.lifelong={n}",)) for n in lengths)
    workspace = workspace_of(dataset, root)
    fitted = [fitted_row(workspace, row, seed, shuffled=shuffled) for seed, row in enumerate(rows)]
    table = Table("lengths", "Lengths", rows, (rows[0].name,))
    longest = history_lengths(fitted[-1].runs[0])
    return measure(workspace, table, fitted), longest


def test_strata_are_cut_by_the_longest_history_of_any_row(toy, tmp_path):
    measured, length_S = measured_lengths(toy, tmp_path, 1, 20, 60)
    ranges = sorted({(each.shortest, each.longest) for each in measured.strata})
    assert length_S.max() > 20
    assert len(ranges) == 4
    assert (ranges[0][0], ranges[-1][1]) == (length_S.min(), length_S.max())


def test_strata_of_few_users_have_no_interval(little, tmp_path):
    measured, _ = measured_lengths(little, tmp_path, 59, 60)
    assert sum(each.share for each in measured.strata) == pytest.approx(1)
    users = [each.difference.users for each in measured.strata]
    assert min(users) < 10
    for each in measured.strata:
        assert np.isnan(each.difference.auc.low) == (each.difference.users < 10)


def test_strata_follow_the_samples_not_their_order_in_a_file(toy, tmp_path):
    plain, _ = measured_lengths(toy, tmp_path / "plain", 59, 60)
    mixed, _ = measured_lengths(toy, tmp_path / "mixed", 59, 60, shuffled=True)
    for one, other in zip(plain.strata, mixed.strata, strict=True):
        assert other.difference.impressions == one.difference.impressions
        assert other.difference.auc.reference == pytest.approx(one.difference.auc.reference)
        assert other.difference.auc.other == pytest.approx(one.difference.auc.other)
