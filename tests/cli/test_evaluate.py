"""`lcn evaluate` and `lcn compare` on run folders: what is one run, and what is saved of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from toy import SMALL

from lcn.api import compare, evaluate
from lcn.cli.compare import compare as compare_command
from lcn.config import load_config
from lcn.data.dataset import Dataset
from lcn.errors import DataError
from lcn.evaluate.predictions import load_predictions
from lcn.evaluate.tables import combined_json
from lcn.train import RunConfig, open_run, train
from lcn.train.predictions_table import write_table


def config_for(dataset: Dataset, *overrides: str, k1: int = 12) -> RunConfig:
    backbone = f"model.backbone={{name: lap, k1: {k1}, k2: 4, width: 8, heads: 2}}"
    return load_config(RunConfig, None, [f"dataset={dataset.folder}", backbone, *SMALL, *overrides])


@pytest.fixture(scope="module")
def runs(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two seeds of one run and another model of the same name."""
    root = tmp_path_factory.mktemp("runs")
    configs = {
        "a": config_for(toy),
        "b": config_for(toy, "train.seed=1", "train.threads=1", "train.log_every=7"),
        "other": config_for(toy, "train.seed=1", k1=6),
    }
    for name, config in configs.items():
        train(config, root / name, progress=False)
    return {name: root / name for name in configs}


def test_seeds_of_one_run_are_one_row(runs: dict[str, Path]) -> None:
    (row,) = evaluate([runs["a"], runs["b"]], resamples=20)
    assert row.seeds == (0, 1)


def test_other_models_of_the_same_name_are_no_seeds(runs: dict[str, Path]) -> None:
    given = [runs["a"], runs["other"]]
    with pytest.raises(DataError, match="two models are called 'lap'") as found:
        evaluate(given, resamples=20)
    assert all(str(folder) in str(found.value) for folder in given)
    outcome = CliRunner().invoke(compare_command, [str(folder) for folder in given])
    assert isinstance(outcome.exception, DataError)
    assert all(str(folder) in str(outcome.exception) for folder in given)
    with pytest.raises(DataError, match="two models are called 'lap'"):
        compare(*given, resamples=20)


def test_compare_takes_run_folders_and_files(runs: dict[str, Path], tmp_path: Path) -> None:
    six = open_run(runs["other"]).predict("test")
    file = replace(six, run="six").save(tmp_path / "six.npz")
    evaluate(runs["b"], resamples=20)
    assert not (runs["other"] / "predictions" / "validation.npz").exists()
    found = compare(runs["b"], file, resamples=20, level=0.9)
    assert [each.run for each in found.results] == ["lap", "six"]
    (difference,) = found.differences
    assert (difference.reference, difference.other, difference.seeds) == ("lap", "six", (1,))
    assert difference.level == 0.9
    given = [str(runs["b"]), str(file), "--resamples", "20", "--level", "0.9"]
    shown = CliRunner().invoke(compare_command, [*given, "--json"]).stdout
    assert shown == combined_json(found.results, found.differences) + "\n"
    outcome = CliRunner().invoke(compare_command, [*given, "--split", "validation"])
    assert f"run `lcn evaluate {runs['b']} --split validation` first" in str(outcome.exception)


def test_compare_predicts_what_was_not_evaluated(runs: dict[str, Path], tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    shutil.copytree(runs["b"], fresh, ignore=shutil.ignore_patterns("predictions"))
    config = fresh / "config.yaml"
    config.write_text(config.read_text().replace("name: ''", "name: again", 1))
    (same,) = compare(runs["b"], fresh, split="validation", resamples=20).differences
    assert (same.other, same.auc.difference) == ("again", 0)


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_tables_are_written_by_the_ending(name: str, tmp_path: Path) -> None:
    table = pa.table({"user": [1, 2], "probability": [0.25, 0.5]})
    write_table(table, tmp_path / "new" / name)
    read = pq.read_table if name.endswith("parquet") else pyarrow.csv.read_csv
    assert read(tmp_path / "new" / name).equals(table)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_a_run_given_twice_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="given twice with seed 0"):
        evaluate([runs["a"], runs["a"]], resamples=20)


def test_predictions_go_when_training_finds_a_better_model(toy: Dataset, tmp_path: Path) -> None:
    run, saved = tmp_path / "r", tmp_path / "r/predictions/test.npz"
    short = config_for(toy, "train.learning_rate=0.0001", "train.monitor=log_loss")
    first = train(short, run, progress=False)
    evaluate(run, resamples=20)
    # Nothing is left to train: the predictions are still those of the best model.
    train(short, run, resume=True, progress=False)
    assert saved.exists()
    longer = short.model_copy(update={"train": short.train.model_copy(update={"epochs": 3})})
    assert train(longer, run, resume=True, progress=False).best_step > first.best_step
    assert not saved.exists()
    outcome = CliRunner().invoke(compare_command, [str(run), str(run)])
    assert "run `lcn evaluate" in str(outcome.exception)
    evaluate(run, resamples=20)
    found = load_predictions(saved)
    np.testing.assert_array_equal(found.logit_S, open_run(run).predict("test").logit_S)


def test_predictions_stay_while_training_finds_no_better_model(
    toy: Dataset, tmp_path: Path
) -> None:
    run, saved = tmp_path / "r", tmp_path / "r/predictions/test.npz"
    still = config_for(toy, "train.learning_rate=0")
    first = train(still, run, progress=False)
    evaluate(run, resamples=20)
    longer = still.model_copy(update={"train": still.train.model_copy(update={"epochs": 2})})
    assert train(longer, run, resume=True, progress=False).best_step == first.best_step
    assert saved.exists()
