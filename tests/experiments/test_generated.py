"""Experiments on generated logs: what is planted is what is asked for, and is read right."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_experiments import TINY, InProcess, tiny

from lcn.data.dataset import open_dataset
from lcn.data.sources import synthetic
from lcn.data.sources.synthetic_config import SyntheticConfig
from lcn.data.sources.synthetic_world import draw_world, shared_items
from lcn.errors import ConfigError
from lcn.experiments import conditions, questions
from lcn.experiments.expect import expect, load_known
from lcn.experiments.planted import planted_dataset
from lcn.experiments.record import CurvePanel, TablePanel, load_record, now
from lcn.experiments.run import Call, run_experiments

SMALL = {"users": 120, "source_items": 60, "target_items": 30, "categories": 5,
         "source_events": 15, "impressions": 8.0, "seed": 2}  # fmt: skip


def quiet(line: str) -> None:
    del line


def test_shared_items_are_one_item_with_one_id(tmp_path):
    config = SyntheticConfig(shared_items=0.5, **SMALL)
    folder = synthetic.generate(tmp_path / "logs", config)
    items = pq.read_table(folder / "items.parquet").to_pydict()
    shared = np.flatnonzero(shared_items(config))
    assert len(shared) == pytest.approx(15, abs=1)
    assert len(items["item_id"]) == 90 - len(shared)
    both = [
        i for i, where in zip(items["item_id"], items["domain"], strict=True) if where == "both"
    ]
    assert both == shared.tolist()
    world = draw_world(config)
    np.testing.assert_array_equal(world.target.latent_IZ[shared], world.source.latent_IZ[shared])
    np.testing.assert_array_equal(world.target.category_I[shared], world.source.category_I[shared])
    seen = pq.read_table(folder / "events_target")["item_id"].to_numpy()
    assert set(seen[seen < 60].tolist()) <= set(shared.tolist()) and (seen < 60).any()


def test_no_shared_items_is_the_log_of_before(tmp_path):
    config = SyntheticConfig(**SMALL)
    folder = synthetic.generate(tmp_path / "logs", config)
    assert (pq.read_table(folder / "events_target")["item_id"].to_numpy() >= 60).all()
    more = SyntheticConfig(**{**SMALL, "shared_items": 0.3})
    less = SyntheticConfig(**{**SMALL, "shared_items": 0.1})
    assert set(np.flatnonzero(shared_items(less))) < set(np.flatnonzero(shared_items(more)))
    with pytest.raises(ValueError, match="shared_categories"):
        SyntheticConfig(**{**SMALL, "shared_items": 0.3, "shared_categories": False})


def test_a_planted_log_is_made_once(tmp_path, monkeypatch):
    config = SyntheticConfig(**SMALL)
    folder = planted_dataset(config, tmp_path)
    assert len(open_dataset(folder).samples["train"]) > 0
    monkeypatch.setattr(synthetic, "generate", lambda *_: pytest.fail("generated again"))
    assert planted_dataset(config, tmp_path) == folder
    names = {path.name for path in folder.parent.iterdir()}
    assert names == {folder.name, f"{folder.name}.lock"}


@pytest.fixture
def little_logs(monkeypatch):
    log = {key: SMALL[key] for key in ("source_items", "target_items", "categories", "seed")}
    monkeypatch.setattr("lcn.experiments.planted.LOG", log)
    monkeypatch.setattr("lcn.experiments.runner.Workers", lambda jobs: InProcess())


def planted_options(**more):
    return tiny(planted=TINY, users=120, seeds=(0,), **more)


def test_conditions_relate_gains_to_dials_and_facts(little_logs, tmp_path, monkeypatch):
    pair = conditions.table().select([conditions.LAP])
    monkeypatch.setattr(conditions, "table", lambda: pair)
    monkeypatch.setattr(conditions, "DIALS", {"rho": (0.0, 0.9), "noise_share": (0.2,)})
    monkeypatch.setattr(conditions, "BASE", {**conditions.BASE, "source_events": 15})
    call = Call(command="lcn experiment conditions", now=now())
    options = planted_options()
    records = run_experiments(["conditions"], [], options, call, root=tmp_path, say=quiet)
    points = records[0].data["points"]
    assert [(point["dial"], point["value"]) for point in points] == [
        ("rho", 0.0), ("rho", 0.9), ("noise_share", 0.2)]  # fmt: skip
    # The base log stands in two dials and is measured once.
    assert points[1]["gains"] == points[2]["gains"]
    assert 0.5 < points[1]["best_auc"] <= 1
    path = tmp_path / "planted" / "records" / "conditions.json"
    known = load_known(path)
    assert len(known) == 2
    expect(known[0].facts, known)
    assert records[0].origin.settings == TINY
    table = next(panel for panel in records[0].panels if isinstance(panel, TablePanel))
    assert len(table.rows) == 3
    json.loads(path.read_text())
    # One record of each row and log, with its runs: an empty look does not take its place.
    assert [row.name for row in records[0].rows] == [row.name for row in pair.rows] * 2
    assert len({row.dataset for row in records[0].rows}) == 2
    found = records[0].origin
    assert found.run_commits and found.run_seconds > 0 and found.sizes == (12, 4)
    empty = replace(options, seeds=(7,), finished=True)
    run_experiments(["conditions"], [], empty, call, root=tmp_path, say=quiet)
    assert load_record(path).data["points"] == points


def test_questions_answer_all_three(little_logs, little, tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "LENGTHS", (5, 40))
    monkeypatch.setattr(questions, "SHARES", (0.0, 0.5))
    monkeypatch.setattr(questions, "LONG", {"source_events": 30})
    call = Call(command="lcn experiment questions", now=now())
    records = run_experiments(
        ["questions"], [little.folder], planted_options(), call, root=tmp_path, say=quiet
    )
    titles = [panel.title for panel in records[0].panels]
    assert any("Longer histories" in title and title.startswith("toy") for title in titles)
    assert any("Kinds of side information" in title for title in titles)
    assert any("30 source events" in title for title in titles)
    curve = next(panel for panel in records[0].panels if isinstance(panel, CurvePanel))
    assert curve.lines[0].x == (0.0, 0.5)
    names = {row.name for row in records[0].rows}
    assert {"LAP, N=5", "LAP, N=40", "kind alone", "the item alone"} <= names


def test_lengths_stop_where_the_histories_do():
    names = [row.name for row in questions.length_table(600).rows]
    assert names[1:4] == ["SIM Soft, N=100", "SIM Soft, N=500", "SIM Soft, N=2000"]
    assert len(names) == 7
    assert len(questions.length_table(10**6).rows) == 13


def test_experiments_without_their_dataset_say_so(tmp_path):
    call = Call(command="lcn", now=now())
    with pytest.raises(ConfigError, match="prepared dataset"):
        run_experiments(["table1"], [], tiny(), call, root=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'table1'"):
        run_experiments(["tabel1"], [], tiny(), call, root=tmp_path)


def test_settings_are_by_dataset_and_the_users_win():
    options = replace(tiny(), planted=("model.width=4",), extra=("model.width=16",))
    assert options.settings_for("movielens-1m")[0] == "model.width=16"
    assert options.settings_for("synthetic") == ("model.width=16",)
    assert replace(options, extra=()).settings_for("synthetic") == ("model.width=4",)
