"""`lcn experiment` from the outside."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from tiny_experiments import TINY, InProcess

from lcn.cli import cli
from lcn.experiments.names import EXPERIMENTS


def test_help_lists_every_experiment_without_torch():
    script = (
        "import sys; from lcn.cli import cli\n"
        "try: cli(['experiment', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for name in (*EXPERIMENTS, "all", "report"):
        assert name in done.stdout


@pytest.mark.parametrize("given", ["x", "0", "1,1", "-1"])
def test_seeds_that_are_none(given, tmp_path):
    result = CliRunner().invoke(cli, ["experiment", "table1", str(tmp_path), "--seeds", given])
    assert result.exit_code == 2


def test_k1_without_k2(tmp_path):
    result = CliRunner().invoke(cli, ["experiment", "table1", str(tmp_path), "--k1", "3"])
    assert result.exit_code == 2 and "together" in result.output


def test_what_tables_set_by_row_is_no_setting_of_all(tmp_path):
    given = ["experiment", "table1", str(tmp_path), "--set", "model.backbone.k1=7"]
    result = CliRunner().invoke(cli, given)
    assert result.exit_code == 2 and "use --k1 and --k2" in result.output


def test_rows_are_those_of_tables(tmp_path):
    given = ["experiment", "figure5b", str(tmp_path), "--rows", "NO SUCH ROW"]
    result = CliRunner().invoke(cli, given)
    assert result.exit_code != 0 and "figure5b takes none" in str(
        result.output + str(result.exception)
    )


def test_a_table_from_the_command_line(little, tmp_path, monkeypatch):
    monkeypatch.setattr("lcn.experiments.runner.Workers", lambda jobs: InProcess())
    settings = [part for each in TINY for part in ("--set", each)]
    given = ["experiment", "table1", str(little.folder), "--rows", "w/o CRP", "--trials", "1",
             "--seeds", "0,3", "--k1", "12", "--k2", "4", "--jobs", "1", "--resamples", "10",
             "--store", str(tmp_path), *settings]  # fmt: skip
    done = CliRunner().invoke(cli, [*given, "--json"])
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    assert record["origin"]["seeds"] == [0, 3]
    assert [row["name"] for row in record["rows"]] == ["no lifelong", "SIM Soft", "w/o CRP"]
    assert "validation AUC" in done.stderr
    plain = CliRunner().invoke(cli, given)
    assert plain.exit_code == 0 and "Paired differences" in plain.output


def test_tuning_seeds_from_the_command_line(little, tmp_path, monkeypatch):
    monkeypatch.setattr("lcn.experiments.runner.Workers", lambda jobs: InProcess())
    settings = [part for each in TINY for part in ("--set", each)]
    given = ["experiment", "table1", str(little.folder), "--rows", "w/o CRP", "--seeds", "1",
             "--k1", "12", "--k2", "4", "--resamples", "10", "--tuning-seeds", "2",
             "--store", str(tmp_path), *settings, "--json"]  # fmt: skip
    done = CliRunner().invoke(cli, [*given, "--trials", "2"])
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    assert record["origin"]["tuning_seeds"] == 2
    assert "[15/15]" in done.stderr  # three rows: two trials of two seeds, and a reported one
    refused = CliRunner().invoke(cli, [*given, "--trials", "1"])
    assert refused.exit_code == 2 and "does not tune" in refused.output
