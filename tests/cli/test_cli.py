"""The real command line, in processes of its own: logs to predictions, and wrong usage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy import SMALL

from lcn.cli import COMMANDS
from lcn.data.dataset import Dataset


def lcn(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lcn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_train_evaluate_compare_predict(toy: Dataset, tmp_path: Path) -> None:
    for recipe in ("none", "lap"):
        width = ["model.backbone.width=8"] if recipe == "lap" else []
        done = lcn(
            "train", tmp_path / recipe, "--recipe", recipe, "--dataset", toy.folder, "--json",
            *SMALL, *width, f"name={recipe}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] > 0
    done = lcn("evaluate", tmp_path / "none", tmp_path / "lap", "--json", "--resamples", "50")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert "auc" in json.dumps(rows)
    done = lcn("evaluate", tmp_path / "lap", "--resamples", "20")
    assert "AUC" in done.stdout
    done = lcn("compare", tmp_path / "none", tmp_path / "lap", "--json", "--resamples", "50")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    done = lcn("predict", tmp_path / "lap", tmp_path / "p.parquet")
    if done.returncode:  # the toy dataset has no names; a prepared one does
        assert "cannot read" in done.stderr
    else:
        assert pq.read_table(tmp_path / "p.parquet").num_rows


def test_consistency_lists_every_reading(toy: Dataset, tmp_path: Path) -> None:
    for recipe in ("twin", "lap", "none"):
        width = [] if recipe == "none" else ["model.backbone.width=8"]
        done = lcn(
            "train", tmp_path / recipe, "--recipe", recipe, "--dataset", toy.folder, *SMALL, *width,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    sizes = ("--size", "5", "--least", "10")
    done = lcn("consistency", tmp_path / "twin", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["way"] for row in rows] == ["common", "own"]
    assert rows[1]["consistency"]["value"] == 1.0 > rows[0]["consistency"]["chance"]
    done = lcn("consistency", tmp_path / "lap", *sizes, "--k1", "0", "--json")
    whole = json.loads(done.stdout)[1]
    assert (whole["k1"], whole["way"]) == (0, "common")
    done = lcn("consistency", tmp_path / "none", *sizes)
    assert done.returncode == 1 and "none" in done.stderr
    done = lcn("consistency", tmp_path / "lap", *sizes)
    assert "random" in done.stdout


def test_resume_takes_the_runs_own_config(toy: Dataset, tmp_path: Path) -> None:
    whole = ["--recipe", "none", "--dataset", toy.folder, *SMALL, "train.epochs=2"]
    started = lcn("train", tmp_path / "r", *whole)
    assert started.returncode == 0, started.stderr
    again = lcn("train", tmp_path / "r", *whole)
    assert again.returncode == 1
    assert "holds a run already; choose another folder or --resume it" in again.stderr
    resumed = lcn("train", tmp_path / "r", "--resume", "train.epochs=3", "train.patience=9")
    assert resumed.returncode == 1
    assert "another config" in resumed.stderr
    resumed = lcn("train", tmp_path / "r", "--resume", "train.epochs=3")
    assert resumed.returncode == 0, resumed.stderr
    again = lcn("train", tmp_path / "r", "--resume")
    assert again.returncode == 0 and "nothing was left to train" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train"], 2, "Missing argument"),
        (["train", "r", "--recipe", "lpa"], 2, "lap"),
        (["train", "r", "--recipe", "lap", "--dataset", "nowhere"], 1, "lcn prepare"),
        (["train", "r", "--recipe", "lap", "train.sed=1"], 1, "did you mean 'seed'"),
        (["evaluate", "nowhere"], 1, "not a run folder"),
        (["prepare", "movielens-2m", "out"], 1, "movielens-1m"),
        (["prepare", "nothing.yaml", "out"], 1, "nothing.yaml"),
        (["prepare", "kuairand", "out", "--set", "path=/tmp"], 2, "unknown option 'path'"),
        (["prepare", "kuairand", "out", "--set", "domain=["], 2, "not valid YAML"),
        (["predict", "nowhere", "out.txt"], 2, ".parquet or .csv"),
        (["train", "nowhere", "--resume"], 1, "holds no run to resume"),
        (["evaluate", "r", "--resamples", "1"], 2, "x>=2"),
        (["frobnicate"], 2, "No such command"),
        (["data", "fetch", "movielens"], 2, "movielens-1m"),
    ],
)
def test_wrong_usage_exits_with_the_right_code_and_says_what_to_do(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = lcn(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = lcn(command, "--help")
    assert done.returncode == 0
    assert f"Usage: lcn {command}" in done.stdout


def test_help_and_preparation_do_not_import_torch() -> None:
    code = (
        "import sys, lcn, lcn.cli, lcn.api, lcn.data.prepare, lcn.cli.prepare, lcn.cli.data\n"
        "import lcn.evaluate.compare\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
