"""The paper's tables: every row is a config, and what is measured is what was trained."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tiny_experiments import InProcess, tiny, workspace_of

from lcn.errors import ConfigError
from lcn.evaluate.compare import Difference
from lcn.evaluate.metrics import auc
from lcn.experiments import quoted
from lcn.experiments.measure import comparisons, measure
from lcn.experiments.record import load_record, now, save_record
from lcn.experiments.rows import Sizes, resolve
from lcn.experiments.run import Call, origin_on, run_experiments, with_origin
from lcn.experiments.runner import Trial, fit_rows
from lcn.experiments.settings import SETTINGS, Options
from lcn.experiments.tables import TABLES, judge, run_table, show
from lcn.experiments.tuning import plan_trials


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(30, 10)])
@pytest.mark.parametrize("name", TABLES)
def test_every_row_and_each_of_its_trials_is_a_config(name, sizes):
    table = TABLES[name](sizes)
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names)
    assert set(table.references) <= set(names)
    for claim in table.claims:
        assert {claim.other, claim.reference} <= set(names)
    for row in table.rows:
        for overrides in plan_trials(row, 8, 0):
            config = resolve(row, "data", SETTINGS, sizes, *overrides)
            assert config.name == row.name


def test_every_quoted_number_has_its_row():
    rows = {name: TABLES[name](Sizes()).rows for name in TABLES}
    for name, numbers in (("table1", quoted.TABLE1), ("table2", quoted.TABLE2),
                          ("table4", quoted.TABLE4)):  # fmt: skip
        assert {row.name for row in rows[name] if row.quoted} == set(numbers)
    assert {row.name: row.quoted for row in rows["table5"] if row.quoted} == quoted.TABLE5
    assert {one for row in rows["table3"] for one in row.quoted} == set(quoted.TABLE3.values())
    assert len(quoted.TABLE5) == 17


def test_sizes_scale_the_pyramid_and_the_two_stages():
    sizes = Sizes(30, 10)
    rows = {row.name: row for row in TABLES["table5"](sizes).rows}
    lcn = resolve(rows["LCN-200-50"], "data", SETTINGS, sizes).model.backbone
    wide = resolve(rows["LCN-500-100"], "data", SETTINGS, sizes).model.backbone
    assert (lcn.k1, lcn.k2, wide.k1, wide.k2) == (30, 10, 75, 20)
    assert resolve(rows["TWIN"], "data", SETTINGS, sizes).model.backbone.keep == 10
    assert resolve(rows["ETA"], "data", SETTINGS, Sizes()).model.backbone.keep == 50
    assert lcn.width == 32


def test_table_4_is_one_domain():
    for row in TABLES["table4"](Sizes()).rows:
        config = resolve(row, "data", SETTINGS, Sizes())
        assert config.lifelong_domain == "target" and not config.objectives


@pytest.fixture(scope="module")
def first_table(little, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    workspace = workspace_of(little, root)
    table = TABLES["table1"](workspace.sizes).select(("w/o CRP", "PT + PS + PC"))
    fitted = fit_rows(workspace, table.rows)
    return workspace, table, fitted, measure(workspace, table, fitted)


def test_measures_are_those_of_the_saved_predictions(first_table):
    workspace, _, fitted, measured = first_table
    assert [result.run for result in measured.results] == [each.row.name for each in fitted]
    for each, result in zip(fitted, measured.results, strict=True):
        runs = [workspace.store.predictions(config, "test", "x") for config in each.runs]
        mean = np.mean([auc(run.logit_S, run.label_S) for run in runs])
        assert result.intervals.auc.estimate == pytest.approx(mean)
        assert result.seeds == (0, 1)


def test_every_comparison_is_made_once_and_corrected(first_table):
    _, table, _, measured = first_table
    names = [row.name for row in table.rows]
    pairs = [(c.other, c.reference) for c in comparisons(table, names)]
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == 6
    for each in measured.compared:
        assert each.holm["auc"] >= each.difference.auc.p_value
    assert measured.pair("PT + PS + PC", "w/o CRP").claim
    assert measured.pair("w/o CRP", "SIM Soft").claim == ""


def test_strata_cover_the_test_impressions(first_table):
    _, _, _, measured = first_table
    shares = {each.shortest: each.share for each in measured.strata}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(each.difference.reference == "SIM Soft" for each in measured.strata)


def difference(low, high, p_value):
    return Difference(0.7, 0.7 + (low + high) / 2, (low + high) / 2, low, high, 0.001, p_value, 8.0)


def test_judging():
    assert judge(difference(0.001, 0.003, 0.01), "auc", 0.01) == "holds"
    assert judge(difference(0.001, 0.003, 0.01), "log_loss", 0.01) == "does not hold"
    assert judge(difference(-0.003, -0.001, 0.01), "auc", 0.01) == "does not hold"
    assert judge(difference(-0.003, -0.001, 0.01), "log_loss", 0.01) == "holds"
    assert judge(difference(-0.001, 0.003, 0.3), "auc", 0.3) == "open"
    assert judge(difference(0.001, 0.003, 0.01), "auc", 0.2) == "open"
    assert judge(difference(math.nan, math.nan, math.nan), "auc", math.nan) == "open"


def test_a_table_on_the_whole_way_to_its_record(little, tmp_path, workers):
    workspace = workspace_of(little, tmp_path, workers, rows=("LCN w/o CRP",), seeds=(0,))
    finding = run_table("table4", workspace)
    assert [row.name for row in finding.rows] == ["no lifelong", "SIM Soft", "LCN w/o CRP"]
    results = finding.panels[0]
    assert "AUC quoted, industrial" in results.head
    ours = next(row for row in results.rows if row[0].text == "LCN w/o CRP")
    assert ours[results.head.index("AUC quoted, industrial")].text == "0.7076"
    assert all(len(row) == len(results.head) for row in results.rows)
    origin = origin_on(workspace, Call(command="lcn", now=now()))
    record = with_origin("table4", finding, origin, tmp_path)
    path = save_record(workspace.store.record_path("table4"), record)
    assert load_record(path) == record
    assert record.origin.run_commits and record.origin.run_seconds > 0
    json.loads(path.read_text())


def test_runs_that_were_best_where_they_ended_are_counted(first_table):
    workspace, table, fitted, measured = first_table
    path = workspace.store.run_folder(fitted[0].runs[0]) / "done.json"
    before = path.read_text()
    facts = json.loads(before)
    assert facts["best_step"] == facts["steps"], "one epoch: there was one look"
    try:
        path.write_text(json.dumps({**facts, "best_step": facts["steps"] - 1}))
        results = show(workspace, table, fitted, measured).panels[0]
    finally:
        path.write_text(before)
    place = results.head.index("still rising")
    assert [row[place].text for row in results.rows] == ["1 of 2"] + ["2 of 2"] * (len(fitted) - 1)


def test_quick_makes_a_view_and_a_record(little, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("lcn.experiments.subset.QUICK_USERS", 20)
    monkeypatch.setattr("lcn.experiments.runner.Workers", lambda jobs: workers)
    options = tiny(rows=("w/o CRP",), quick=True, trials=3, seeds=(0, 1, 2))
    call = Call(command="lcn", now=now())
    records = run_experiments(
        ["table1"], [little.folder], options, call, root=tmp_path, say=lambda line: None
    )
    origin = records[0].origin
    assert origin.quick and origin.trials == 2 and origin.seeds == (0, 1)
    assert origin.fingerprint != little.manifest.fingerprint
    assert list(tmp_path.glob("*/records/table1-quick.json"))


def test_defaults_are_the_papers_sizes_and_presets_are_by_name():
    assert Options().sizes_for("movielens-1m") == Sizes(200, 50)
    assert Options().sizes_for("kuairand-pure") == Sizes(30, 10)
    assert Options(sizes=Sizes(7, 3)).sizes_for("kuairand-pure") == Sizes(7, 3)


def test_the_choice_is_shown_with_its_own_value(first_table):
    """By log loss the best is the lowest; a trial that failed is none of the others."""
    workspace, table, fitted, measured = first_table
    tried = (Trial((), math.nan), Trial(("a=1",), 0.45), Trial(("a=2",), 0.6))
    tuned = [replace(each, trials=tried, chosen=("a=1",)) for each in fitted]
    workspace = replace(workspace, options=replace(workspace.options, trials=3))
    choices = show(workspace, table, tuned, measured).panels[-1]
    assert choices.head[2:4] == ("as chosen", "as it stands")
    assert [cell.text for cell in choices.rows[0][1:4]] == ["3", "0.4500", "-"]
    assert choices.note.endswith("on a seed that is not reported.")
    several = replace(workspace.options, tuning_seeds=(1000, 1001))
    choices = show(replace(workspace, options=several), table, tuned, measured).panels[-1]
    assert choices.note.endswith("on the same 2 seeds, which are not reported.")


def test_reported_seeds_are_none_that_settings_were_chosen_on(little, tmp_path):
    call = Call(command="lcn", now=now())
    with pytest.raises(ConfigError, match="settings are chosen on 1001; report others"):
        options = tiny(trials=2, seeds=(0, 1001), tuning_seeds=(1000, 1001))
        run_experiments(["table1"], [little.folder], options, call, root=tmp_path)


def test_an_experiment_that_cannot_be_done_ends_no_other(little, tmp_path, monkeypatch):
    monkeypatch.setattr("lcn.experiments.runner.Workers", lambda jobs: InProcess())
    told, options = [], tiny(rows=("w/o CRP",), seeds=(0,))
    call = Call(command="lcn", now=now())
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match="1 of 2 experiments could not be done"):
        run_experiments(
            ["table1"], [nowhere, little.folder], options, call, root=tmp_path, say=told.append
        )
    assert any("not done: table1 on nowhere" in line for line in told)
    workspace = workspace_of(little, tmp_path)
    assert load_record(workspace.store.record_path("table1")).rows
