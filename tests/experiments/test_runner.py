"""The runner: equal tuning by validation, shared runs, nothing twice, nothing half."""

import json
import math
import shutil
from dataclasses import replace

import pytest
from tiny_experiments import InProcess, workspace_of

from lcn.api import recipe
from lcn.data.dataset import open_dataset
from lcn.errors import ConfigError, DataError, TrainingError
from lcn.evaluate.predictions import check_settings, load_predictions
from lcn.experiments import worker
from lcn.experiments.rows import (
    BASE_KNOBS,
    CRP_KNOBS,
    Row,
    Sizes,
    Table,
    knob,
    resolve,
    shortened,
)
from lcn.experiments.run import quick
from lcn.experiments.runner import fit_rows, own_workers
from lcn.experiments.settings import Options
from lcn.experiments.store import config_key, open_store
from lcn.experiments.subset import take_users
from lcn.experiments.tuning import choose, plan_trials
from lcn.objectives.crp import Crp

LAP, NONE = Row("LAP", "lap"), Row("none", "none")


def test_finished_runs_are_not_run_again(little, tmp_path):
    first, second = InProcess(), InProcess()
    fitted = fit_rows(workspace_of(little, tmp_path, first), [LAP, NONE])
    assert [len(each.runs) for each in fitted] == [2, 2]
    assert len(first.jobs_run) == 4
    again = fit_rows(workspace_of(little, tmp_path, second), [LAP, NONE])
    assert second.jobs_run == []
    assert again == fitted


def test_rows_that_want_the_same_run_share_it(little, tmp_path, workers):
    rows = [LAP, Row("the same", "lap", ("model.dropout=0.0",))]
    fitted = fit_rows(workspace_of(little, tmp_path, workers), rows)
    assert len(workers.jobs_run) == 2
    workspace = workspace_of(little, tmp_path)
    one, other = (workspace.store.predictions(f.runs[0], "test", f.row.name) for f in fitted)
    assert (one.run, other.run) == ("LAP", "the same")
    assert (one.logit_S == other.logit_S).all()


def test_an_interrupted_experiment_goes_on_where_it_was(little, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit_rows(workspace_of(little, tmp_path, InProcess(fail_at=3)), [LAP, NONE])
    rest = InProcess()
    fitted = fit_rows(workspace_of(little, tmp_path, rest), [LAP, NONE])
    assert len(rest.jobs_run) == 2
    assert all(len(each.runs) == 2 for each in fitted)


def test_rows_are_completed_one_after_the_other(little, tmp_path, workers):
    workers.jobs = 1
    workspace = workspace_of(little, tmp_path, workers, trials=2)
    fitted = fit_rows(workspace, [LAP, NONE])
    first = {workspace.store.run_folder(config) for config in fitted[0].runs}
    # Two trials of the first row, then its two seeds, before anything of the second row.
    assert set(workers.jobs_run[2:4]) == first


def test_finished_rows_can_be_shown_before_the_rest_is_trained(little, tmp_path, workers):
    options = {"trials": 2, "seeds": (0,)}
    fit_rows(workspace_of(little, tmp_path, workers, **options), [LAP])
    nothing = InProcess()
    workspace = workspace_of(little, tmp_path, nothing, finished=True, **options)
    fitted = fit_rows(workspace, [NONE, LAP])
    assert nothing.jobs_run == []
    assert fitted[0].runs == () and fitted[0].error == "not trained yet"
    assert len(fitted[1].runs) == 1
    more = workspace_of(little, tmp_path, nothing, finished=True, trials=2, seeds=(0, 1))
    (half,) = fit_rows(more, [LAP])
    assert half.runs == () and half.error == "not trained yet"


def test_a_half_written_run_is_not_picked_up(little, tmp_path, workers):
    options = {"seeds": (0,)}
    fitted = fit_rows(workspace_of(little, tmp_path, workers, **options), [NONE])
    workspace = workspace_of(little, tmp_path, **options)
    folder = workspace.store.run_folder(fitted[0].runs[0])
    whole = (folder / "done.json").read_text()
    (folder / "done.json").write_text(whole[: len(whole) // 2])
    again = InProcess()
    fit_rows(workspace_of(little, tmp_path, again, **options), [NONE])
    assert again.jobs_run == [folder]
    after = json.loads((folder / "done.json").read_text())
    assert after["validation"] == json.loads(whole)["validation"]


def test_a_run_left_by_other_code_is_trained_anew(little, tmp_path, workers):
    workspace = workspace_of(little, tmp_path, workers, seeds=(0,))
    config = workspace.resolve(NONE, "train.seed=0")
    folder = workspace.store.run_folder(config)
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "state.json").write_text('{"identity": {"dataset": "other"}}')
    fitted = fit_rows(workspace, [NONE])
    assert fitted[0].runs == (config,)


def test_a_run_made_before_a_switch_existed_is_found(little, tmp_path, workers):
    workspace = workspace_of(little, tmp_path, workers, seeds=(0,))
    fitted = fit_rows(workspace, [NONE])
    config = fitted[0].runs[0]
    folder = workspace.store.run_folder(config)
    done = json.loads((folder / "done.json").read_text())
    del done["config"]["model"]["products"]
    (folder / "done.json").write_text(json.dumps(done))
    moved = folder.with_name("older-key")
    folder.rename(moved)
    store = open_store(tmp_path, open_dataset(little.folder).manifest)
    assert store.run_folder(config) == moved
    assert store.finished(config) is not None


def test_what_does_not_decide_a_result_is_not_in_the_key(little):
    def key(*overrides):
        sizes = Sizes(12, 4)
        return config_key(resolve(LAP, str(little.folder), (), sizes, *overrides), "data")

    assert key() == key("train.workers=3", "train.threads=2")
    assert key() != key("train.seed=1")
    assert key() != key("train.epochs=11")
    assert key() != key("model.dropout=0.1")


def test_every_row_is_tried_as_often_and_validation_chooses(little, tmp_path, workers):
    workspace = workspace_of(little, tmp_path, workers, trials=3, seeds=(0,))
    fitted = fit_rows(workspace, [LAP, NONE])
    assert [len(each.trials) for each in fitted] == [3, 3]
    for each in fitted:
        best = max(each.trials, key=lambda trial: trial.value)
        assert each.chosen == best.overrides
        assert each.runs == (workspace.resolve(each.row, *best.overrides, "train.seed=0"),)
    seeds = {open_seed(path) for path in workers.jobs_run}
    assert seeds == {0, 1000}


def test_the_mean_over_tuning_seeds_chooses(little, tmp_path, workers):
    """One seed's best need not be the best: there the trials would be ordered otherwise."""
    two = {"trials": 4, "seeds": (0,), "tuning_seeds": (1000, 1001)}
    workspace = workspace_of(little, tmp_path, workers, **two)
    (both,) = fit_rows(workspace, [LAP])
    assert len(workers.jobs_run) == 4 * 2 + 1
    alone = []
    for seed in (1000, 1001):
        one = {**two, "tuning_seeds": (seed,), "finished": True}
        workspace = workspace_of(little, tmp_path, InProcess(), **one)
        pursued = [
            workspace.store.finished(workspace.resolve(LAP, *trial.overrides, f"train.seed={seed}"))
            for trial in both.trials
        ]
        alone.append([done.validation["auc"] for done in pursued if done is not None])
    means = [sum(pair) / 2 for pair in zip(*alone, strict=True)]
    assert [trial.value for trial in both.trials] == pytest.approx(means, abs=1e-12)
    assert both.chosen == both.trials[means.index(max(means))].overrides


def test_more_tuning_seeds_try_the_same_settings_and_reuse_what_was_tried(little, tmp_path):
    def fit(workers, *seeds):
        options = {"trials": 3, "seeds": (0,), "tuning_seeds": seeds}
        (fitted,) = fit_rows(workspace_of(little, tmp_path, workers, **options), [LAP])
        return [trial.overrides for trial in fitted.trials]

    one = fit(InProcess(), 1000)
    more = InProcess()
    assert fit(more, 1000, 1001) == one
    tried = [path for path in more.jobs_run if open_seed(path) != 0]
    assert [open_seed(path) for path in tried] == [1001] * 3


def test_a_trial_that_failed_on_one_of_its_seeds_is_not_chosen(little, tmp_path, monkeypatch):
    real = worker._train

    def train(config, folder):
        if config.train.seed == 1001 and config.model.embedding.std == 0.2:
            raise TrainingError("the loss is NaN")
        return real(config, folder)

    monkeypatch.setattr(worker, "_train", train)
    options = {"trials": 2, "seeds": (0,), "tuning_seeds": (1000, 1001)}
    (fitted,) = fit_rows(workspace_of(little, tmp_path, InProcess(), **options), [NONE])
    assert not math.isnan(fitted.trials[0].value) and math.isnan(fitted.trials[1].value)
    assert fitted.chosen == () and len(fitted.runs) == 1


def open_seed(folder) -> int:
    return json.loads((folder / "environment.json").read_text())["seed"]


def test_a_row_that_cannot_run_says_why_and_others_go_on(little, tmp_path, workers):
    rows = [Row("misspelt", "lap", ("model.backbone.k3=1",)), NONE]
    fitted = fit_rows(workspace_of(little, tmp_path, workers), rows)
    assert fitted[0].runs == () and "k3" in fitted[0].error
    assert len(fitted[1].runs) == 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [("objectives.0.weight=1", "none: the list is empty"), ("objectives.weight=1", "no place")],
)
def test_a_setting_of_an_objective_that_a_row_lacks(little, tmp_path, workers, setting, said):
    workspace = workspace_of(little, tmp_path, workers, extra=(setting,))
    (fitted,) = fit_rows(workspace, [NONE])
    assert fitted.runs == () and said in fitted.error


def test_a_row_without_its_data_says_why(little, tmp_path, workers):
    hard = Row("hard", "sim_hard", ("model.backbone.key=brand",))
    fitted = fit_rows(workspace_of(little, tmp_path, workers), [hard])
    assert fitted[0].runs == () and "brand" in fitted[0].error


def test_processes_train_the_same_as_this_one(little, tmp_path, workers):
    here = workspace_of(little, tmp_path / "here", workers, seeds=(0,))
    one = fit_rows(here, [LAP])
    with own_workers(2) as pool:
        there = workspace_of(little, tmp_path / "there", pool, seeds=(0,))
        other = fit_rows(there, [LAP])
    values = [b.store.finished(f[0].runs[0]) for b, f in ((here, one), (there, other))]
    assert values[0].validation["auc"] == pytest.approx(values[1].validation["auc"], abs=1e-4)


def test_trials_turn_shared_knobs_alike_and_cover_their_values():
    plain, with_crp = plan_trials(LAP, 7, 0), plan_trials(Row("x", "lap_crp", (), CRP_KNOBS), 7, 0)
    assert plain[0] == with_crp[0] == ()
    for ours, theirs in zip(plain[1:], with_crp[1:], strict=True):
        assert set(ours) < set(theirs)
    for each in BASE_KNOBS:
        turns = [[o for o in trial if o in sum(each.values, ())] for trial in plain[1:]]
        counts = [sum(turn == list(value) for turn in turns) for value in each.values]
        assert max(counts) - min(counts) <= 2  # no trial is made twice
    assert plan_trials(LAP, 7, 0) != plan_trials(LAP, 7, 1)
    assert plan_trials(LAP, 1, 0) == ((),)


@pytest.mark.parametrize(("trials", "extra"), [(12, ()), (6, ("model.embedding.std=0.2",))])
def test_rows_without_knobs_of_their_own_try_as_much(little, tmp_path, trials, extra):
    workspace = workspace_of(little, tmp_path, trials=trials, extra=extra)
    for row in (LAP, NONE, Row("x", "lap_crp", (), CRP_KNOBS)):
        overrides = plan_trials(
            row,
            trials,
            0,
            fixed={each.partition("=")[0] for each in extra},
            changes=lambda given, row=row: workspace.resolve(row, *given) != workspace.resolve(row),
        )
        configs = [workspace.resolve(row, *each) for each in overrides]
        assert len({each.model_dump_json() for each in configs}) == trials
        if extra:
            assert all(config.model.embedding.std == 0.2 for config in configs)


def test_more_trials_than_there_are_settings_are_refused():
    with pytest.raises(ConfigError, match=r"13 settings to try.*give --trials 13 or fewer"):
        plan_trials(LAP, 14, 0)
    with pytest.raises(ConfigError, match="there are 7 settings"):
        plan_trials(LAP, 8, 0, fixed={"model.embedding.std"})


def test_choosing():
    nan = float("nan")
    assert choose([0.5, nan, 0.7, 0.7], "auc") == 2
    assert choose([0.5, nan, 0.7], "log_loss") == 0
    with pytest.raises(ValueError, match="every trial"):
        choose([nan, nan], "auc")


def test_selecting_rows_keeps_references_and_drops_claims():
    rows = (Row("none", "none"), Row("a", "lap"), Row("b", "lap", beyond=True))
    table = Table("t", "T", rows, ("none",))
    assert [row.name for row in table.select().rows] == ["none", "a"]
    assert [row.name for row in table.select(beyond=True).rows] == ["none", "a", "b"]
    assert [row.name for row in table.select(["b"]).rows] == ["none", "b"]
    with pytest.raises(ConfigError, match="did you mean"):
        table.select(["none "])


def test_knob_values_are_overrides():
    assert knob("train.seed", 1, 2).values == (("train.seed=1",), ("train.seed=2",))


def test_a_quick_view_keeps_some_users_impressions_and_all_events(little, tmp_path):
    view = take_users(little.folder, tmp_path / "view", 10)
    opened = open_dataset(view)
    shown = {user for rows in opened.samples.values() for user in rows.user_S.tolist()}
    assert len(shown) == 10
    assert len(opened.events["source"].item_E) == len(little.events["source"].item_E)
    assert opened.manifest.fingerprint != little.manifest.fingerprint
    of_user = next(iter(shown))
    whole = sum(int((rows.user_S == of_user).sum()) for rows in little.samples.values())
    assert whole == sum(int((rows.user_S == of_user).sum()) for rows in opened.samples.values())
    assert take_users(little.folder, tmp_path / "view", 10) == view
    assert take_users(little.folder, tmp_path / "other", 1000) == little.folder


def test_a_view_cut_off_is_made_again(little, tmp_path):
    view = take_users(little.folder, tmp_path / "view", 10)
    (view / "manifest.json").unlink()
    with pytest.raises(DataError):
        open_dataset(view)
    shutil.rmtree(view / "samples")
    assert len(open_dataset(take_users(little.folder, view, 10)).samples["train"]) > 0


def test_a_quick_look_takes_few_first_steps(little):
    config = recipe("lcn", str(little.folder))
    assert config.train.pretrain_steps > 60
    assert shortened(config, 0) == config
    short = shortened(config, 60).train
    assert short.pretrain_steps == 60 and short.source_steps <= 60
    assert quick(Options()).first_steps == 60
    assert quick(Options(tuning_seeds=(1000, 1001))).tuning_seeds == (1000,)
    plain = recipe("lap", str(little.folder))
    assert shortened(plain, 60) == plain


def test_seeds_of_before_and_after_a_switch_are_seeds_of_one_row(little, tmp_path, workers):
    """Predictions of before carry the digest of settings that did not hold the switch."""
    workspace = workspace_of(little, tmp_path, workers)
    (fitted,) = fit_rows(workspace, [NONE])
    path = workspace.store.run_folder(fitted.runs[0]) / "predictions" / "test.npz"
    replace(load_predictions(path), config="digest of before").save(path)
    runs = [workspace.store.predictions(config, "test", "none") for config in fitted.runs]
    check_settings(runs)


def test_a_run_of_an_objective_that_was_mended_since_is_not_found(
    little, tmp_path, workers, monkeypatch
):
    row = Row("LCN", "lap_crp", ("train.pretrain_steps=1",))
    (fitted,) = fit_rows(workspace_of(little, tmp_path, workers, seeds=(0,)), [row])
    config, manifest = fitted.runs[0], little.manifest
    assert open_store(tmp_path, manifest).finished(config) is not None
    monkeypatch.setattr(Crp, "revision", 7)
    assert open_store(tmp_path, manifest).finished(config) is None
    again = InProcess()
    fit_rows(workspace_of(little, tmp_path, again, seeds=(0,)), [row])
    mended = open_store(tmp_path, manifest).finished(config)
    assert len(again.jobs_run) == 1 and mended is not None and mended.revisions == {"crp": 7}


def test_a_tuned_row_with_a_trial_that_failed_can_be_shown(little, tmp_path, monkeypatch):
    real = worker._train

    def train(config, folder):
        if config.model.embedding.std == 0.2:
            raise TrainingError("the loss is NaN")
        return real(config, folder)

    monkeypatch.setattr(worker, "_train", train)
    options = {"trials": 2, "seeds": (0,)}
    workspace = workspace_of(little, tmp_path, InProcess(), **options)
    (trained,) = fit_rows(workspace, [NONE])
    assert math.isnan(trained.trials[1].value) and len(trained.runs) == 1
    workspace = workspace_of(little, tmp_path, InProcess(fail_at=1), finished=True, **options)
    (shown,) = fit_rows(workspace, [NONE])
    assert shown.runs == trained.runs and shown.chosen == trained.chosen == ()
    monkeypatch.setattr(worker, "_train", real)
    mended = InProcess()
    (better,) = fit_rows(workspace_of(little, tmp_path, mended, **options), [NONE])
    assert len(mended.jobs_run) >= 1 and not math.isnan(better.trials[1].value)


def test_what_the_user_fixes_by_group_is_not_turned():
    fixed = {"model.embedding", "train.learning_rate"}
    tried = plan_trials(NONE, 2, 0, fixed=fixed)
    assert [text.partition("=")[0] for text in tried[1]] == ["model.dropout"]
    with pytest.raises(ConfigError, match=r"there are 1 settings .*none"):
        plan_trials(NONE, 2, 0, fixed={"model", "train"})
