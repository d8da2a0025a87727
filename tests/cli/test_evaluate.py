"""`lcn evaluate` and `lcn compare` on run folders: what is one run, and what is saved of it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from lcn.api import compare, evaluate
from lcn.cli.compare import compare as compare_command
from lcn.config import load_config
from lcn.data.dataset import Dataset
from lcn.errors import DataError
from lcn.train import RunConfig, train

SMALL = (
    "batch.size=256",
    "batch.lifelong=30",
    "batch.short=5",
    "model.width=8",
    "model.field_width=8",
    "model.short={width: 8, heads: 2}",
    "model.hidden=[16]",
    "train.epochs=1",
)


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
