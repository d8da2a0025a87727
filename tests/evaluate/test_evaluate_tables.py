"""Tables, JSON and `lcn compare`: the same records in every form."""

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from evaluate_twins import make_predictions, simulate
from rich.console import Console

from lcn.cli.compare import compare as compare_command
from lcn.errors import DataError
from lcn.evaluate.bootstrap import Interval
from lcn.evaluate.compare import compare, holm
from lcn.evaluate.plots import NamedInterval, forest_svg
from lcn.evaluate.results import result_of
from lcn.evaluate.tables import (
    combined_json,
    differences_table,
    interval_text,
    p_value_text,
    results_json,
    results_table,
    seeds_text,
)


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(0)
    truth, label, user = simulate(rng, users=60)
    names = ("none", "a|b", "[bold]lap")
    return [
        make_predictions(truth + rng.normal(0, 0.4 * i, truth.size), label, user, run=run)
        for i, run in enumerate(names)
    ]


@pytest.fixture(scope="module")
def results(runs):
    return [result_of([run], generator=np.random.default_rng(0), resamples=50) for run in runs]


@pytest.fixture(scope="module")
def differences(runs):
    return [
        compare(runs[0], run, generator=np.random.default_rng(0), resamples=50) for run in runs[1:]
    ]


def printed(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def test_all_forms_agree(results, differences):
    auc = results[1].intervals.auc
    text = printed(results_table(results))
    assert f"{auc.estimate:.4f}" in text and "a|b" in text and "[bold]lap" in text
    bounds = f"{auc.low:.4f}–{auc.high:.4f}".replace("0.", ".")
    assert bounds in text
    assert json.loads(results_json(results))[1]["intervals"]["auc"]["low"] == auc.low
    one = differences[0].auc
    assert f"{one.difference:+.4f}" in printed(differences_table(differences))
    tree = json.loads(combined_json(results, differences))
    assert tree["differences"][0]["auc"]["difference"] == one.difference
    assert tree["results"] == json.loads(results_json(results))


def test_json_carries_holm_and_null(results, differences):
    both = json.loads(combined_json(results, differences))
    corrected = holm([one.gauc.p_value for one in differences])
    found = [row["gauc"]["p_value_holm"] for row in both["differences"]]
    assert found == pytest.approx(corrected)
    assert both["results"][0]["platt_log_loss"] is None
    one_label = make_predictions([0.1, 0.2], [1, 1], [0, 1])
    blind = result_of([one_label], generator=np.random.default_rng(0), resamples=20)
    assert json.loads(results_json([blind]))[0]["intervals"]["auc"]["estimate"] is None
    assert " - " in printed(results_table([blind]))


def test_one_user_is_shown_without_interval_and_p_value(runs):
    few = [run.take(run.user_S == 0) for run in runs[:2]]
    rng = np.random.default_rng(0)
    found = compare(*few, generator=rng, resamples=20)
    alone = f"{found.auc.difference:+.4f}"
    shown = printed(differences_table([found]))
    row = next(line for line in shown.splitlines() if alone in line).replace("│", " ").split()
    assert row[-2:] == ["-", "-"]
    assert "nan" not in shown.lower()
    assert json.loads(combined_json([], [found]))["differences"][0]["auc"]["p_value"] is None
    results = [result_of([run], generator=rng, resamples=20) for run in few]
    assert "nan" not in printed(results_table(results)).lower()
    unknown = Interval(found.auc.difference, found.auc.low, found.auc.high, np.nan)
    picture = forest_svg([NamedInterval("a", unknown)], "difference in AUC", 0.0)
    assert picture.count("#8a8f98") >= 1


def test_small_texts():
    assert (
        interval_text(Interval(1.5, 0.9, 10.25, 0), "calibration_ratio") == "1.500 [0.900, 10.250]"
    )
    assert interval_text(Interval(0.5, np.nan, np.nan, np.nan), "auc") == "0.5000"
    assert interval_text(Interval(np.nan, 0, 1, 0), "auc") == "-"
    assert [p_value_text(p) for p in (0.0004, 0.012345, 0.5, np.nan)] == [
        "<0.001",
        "0.012",
        "0.50",
        "-",
    ]
    assert (seeds_text([0, 1]), seeds_text(range(5))) == ("0, 1", "5 seeds")


def test_interval_above_ten_keeps_its_digits():
    from lcn.evaluate.tables import _narrow

    assert _narrow("9.000 [0.900, 10.250]") == "9.000\n[dim].900–10.250[/dim]"


@pytest.fixture
def files(runs, tmp_path):
    return [str(run.save(tmp_path / f"{i}.npz")) for i, run in enumerate(runs)]


def test_command_prints_json_on_stdout_alone(files):
    outcome = CliRunner().invoke(compare_command, [*files, "--resamples", "20", "--json"])
    assert outcome.exit_code == 0, outcome.output
    tree = json.loads(outcome.stdout)
    assert [row["run"] for row in tree["results"]] == ["none", "a|b", "[bold]lap"]
    assert [row["other"] for row in tree["differences"]] == ["a|b", "[bold]lap"]


def test_command_prints_tables(files):
    outcome = CliRunner().invoke(compare_command, [*files, "--resamples", "20"])
    assert outcome.exit_code == 0, outcome.output
    assert "Models compared" in outcome.stdout and "Paired differences" in outcome.stdout


@pytest.mark.parametrize("arguments", [[], ["missing.npz", "other.npz"], ["--resamples", "1"]])
def test_wrong_usage_exits_2(arguments, files):
    arguments = arguments if arguments and arguments[0] == "missing.npz" else [files[0], *arguments]
    assert CliRunner().invoke(compare_command, arguments).exit_code == 2


def test_one_run_alone_teaches(files):
    outcome = CliRunner().invoke(compare_command, [files[0], files[0]])
    assert isinstance(outcome.exception, DataError)
    assert "another run" in str(outcome.exception)


def test_neither_the_command_nor_the_metrics_import_torch():
    import subprocess
    import sys

    modules = "lcn.cli.compare, lcn.evaluate.results, lcn.evaluate.strata, lcn.report.page"
    heavy = "{'torch', 'matplotlib', 'jinja2', 'numba'}"
    code = f"import {modules}, sys; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
