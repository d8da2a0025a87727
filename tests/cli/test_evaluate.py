"""`lcn evaluate` and `lcn compare` on run folders: what is one run, and what is saved of it."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from toy import SMALL

from lcn.api import compare, evaluate
from lcn.cli.compare import compare as compare_command
from lcn.config import load_config
from lcn.data.dataset import Dataset
from lcn.errors import DataError
from lcn.evaluate.predictions import load_predictions
from lcn.train import RunConfig, open_run, train


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
    # As the two sides of a comparison they may share it.
    assert compare([runs["b"]], [runs["other"]], resamples=20).seeds == (1,)


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
