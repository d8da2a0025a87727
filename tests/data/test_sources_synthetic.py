"""Synthetic logs: reproducible whatever the cut, and true to what was planted."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from lcn.data.sources import synthetic
from lcn.data.sources.synthetic import SyntheticConfig
from lcn.data.sources.synthetic_world import BLOCK, affinity, draw_block, draw_world
from lcn.evaluate.metrics import auc

SMALL = SyntheticConfig(users=300, source_events=60)


def digest(folder: Path) -> str:
    result = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet")):
        result.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return result.hexdigest()


def rows(folder: Path, table: str):
    return ds.dataset(str(folder / table)).to_table()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return synthetic.generate(tmp_path_factory.mktemp("small") / "out", SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    config = SyntheticConfig(users=4_000, source_events=100)
    return synthetic.generate(tmp_path_factory.mktemp("large") / "out", config)


def test_same_seed_same_bytes_other_seed_others(folder, tmp_path):
    again = synthetic.generate(tmp_path / "again", SMALL)
    other = synthetic.generate(tmp_path / "other", SMALL.model_copy(update={"seed": 1}))
    assert digest(folder) == digest(again)
    assert digest(folder) != digest(other)


def test_more_users_only_add_rows(folder, tmp_path):
    fewer = synthetic.generate(tmp_path / "fewer", SMALL.model_copy(update={"users": 270}))
    for table in ("events_source", "events_target", "impressions", "users"):
        whole = rows(folder, table)
        kept = whole.filter(ds.field("user_id") < 270)
        assert rows(fewer, table).equals(kept)
        assert kept.num_rows < whole.num_rows


def test_an_interrupted_log_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(users: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.generate(tmp_path / "out", SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_processes_and_file_cuts_change_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCKS_PER_PART", 1)
    cut = synthetic.generate(tmp_path / "cut", SMALL)
    assert len(list((cut / "impressions").iterdir())) == 2
    for table in ("events_source", "events_target", "impressions", "users"):
        assert rows(cut, table).equals(rows(folder, table))


def test_worker_processes_write_the_same_bytes(tmp_path):
    config = SyntheticConfig(users=17 * BLOCK, source_events=5)
    one = synthetic.generate(tmp_path / "one", config)
    two = synthetic.generate(tmp_path / "two", config, workers=2)
    assert digest(one) == digest(two)


def columns(folder: Path, table: str) -> dict[str, np.ndarray]:
    found = rows(folder, table)
    return {name: found[name].to_numpy(zero_copy_only=False) for name in found.column_names}


def test_form_of_the_rows(folder):
    domain_I = np.array(pq.read_table(folder / "items.parquet")["domain"].to_pylist())
    end = synthetic.START_MS + SMALL.days * 86_400_000
    for table, domain in (
        ("events_source", "source"),
        ("events_target", "target"),
        ("impressions", "target"),
    ):
        found = columns(folder, table)
        assert (domain_I[found["item_id"]] == domain).all()
        assert (found["time_ms"] >= synthetic.START_MS).all()
        assert (found["time_ms"] <= end).all()
        order = np.lexsort((found["time_ms"], found["user_id"]))
        assert (np.diff(found["user_id"]) >= 0).all()
        assert (found["time_ms"][order] == found["time_ms"]).all()
        keys = np.stack([found[name] for name in ("user_id", "item_id", "time_ms")])
        assert np.unique(keys, axis=1).shape == keys.shape


def test_clicks_are_target_behaviours_with_a_stay_time(folder):
    shown, target = columns(folder, "impressions"), columns(folder, "events_target")
    assert len(np.unique(shown["user_id"])) == SMALL.users
    click = shown["click"] == 1
    assert (np.isnan(shown["stay_seconds"]) == ~click).all()
    names = ("user_id", "item_id", "time_ms", "stay_seconds")
    behaved = set(zip(*(target[name].tolist() for name in names), strict=True))
    assert set(zip(*(shown[name][click].tolist() for name in names), strict=True)) <= behaved
    assert len(behaved) > click.sum()


def best_auc(probability_S):
    """Expected AUC of ranking by the truth: an impression counts p as clicked, 1 - p as not."""
    share_S = np.concatenate([probability_S, 1 - probability_S])
    return auc(np.tile(probability_S, 2), np.repeat([1, 0], len(probability_S)), share_S)


def test_probabilities_are_the_click_rates(large):
    shown = columns(large, "impressions")
    probability, click = shown["probability"], shown["click"]
    bucket = np.digitize(probability, np.linspace(0.1, 0.9, 9))
    for number in np.unique(bucket):
        inside = bucket == number
        expected, deviation = probability[inside].sum(), probability[inside]
        deviation = np.sqrt((deviation * (1 - deviation)).sum())
        assert abs(click[inside].sum() - expected) < 4 * deviation
    assert 0.76 < auc(probability, click) < 0.82
    assert best_auc(probability) == pytest.approx(auc(probability, click), abs=0.01)


def _interest_in_source(config: SyntheticConfig) -> float:
    """Correlation of a candidate's true appeal with its category's share of the source history."""
    world = draw_world(config)
    found = []
    for number in range(6):
        block = draw_block(config, world, number)
        count_UC = np.zeros((BLOCK, config.categories))
        category = world.source.category_I[block.source.item]
        np.add.at(count_UC, (block.source.user, category), 1)
        share_UC = count_UC / count_UC.sum(1, keepdims=True)
        popular_C = share_UC.mean(0)
        shown = block.shown
        candidate = world.target.category_I[shown.item]
        lift = share_UC[shown.user, candidate] - popular_C[candidate]
        # Within the candidate's category, so that its popularity says nothing.
        truth = np.log(shown.probability / (1 - shown.probability))
        mean_C = np.bincount(candidate, truth, config.categories)
        mean_C /= np.maximum(np.bincount(candidate, minlength=config.categories), 1)
        found.append(np.corrcoef(lift, truth - mean_C[candidate])[0, 1])
    return float(np.mean(found))


def test_rho_is_what_the_source_says_about_the_target():
    config = {"users": 1536, "source_events": 100}
    none, half, high = (
        _interest_in_source(SyntheticConfig(**config, rho=rho)) for rho in (0.0, 0.5, 1.0)
    )
    # 18,000 impressions of 1,536 users: three standard errors are below 0.04.
    assert abs(none) < 0.04
    assert high > 0.2
    assert none < half < high


def test_rho_leaves_the_best_reachable_auc_alone():
    aucs = []
    for rho in (0.0, 1.0):
        config = SyntheticConfig(rho=rho, seed=1)
        world = draw_world(config)
        shown = [draw_block(config, world, number).shown for number in range(8)]
        aucs.append(best_auc(np.concatenate([part.probability for part in shown])))
    assert aucs[0] == pytest.approx(aucs[1], abs=0.01)


def test_full_drift_forgets_and_no_drift_remembers():
    config = SyntheticConfig(drift=0.0)
    world = draw_world(config)
    interests_at_once = draw_block(config, world, 0)
    config = SyntheticConfig(drift=1.0)
    drifted = draw_block(config, world, 0)
    assert not np.array_equal(interests_at_once.shown.probability, drifted.shown.probability)


def test_affinity_counts_unknown_categories_half():
    from lcn.data.sources.synthetic_world import Interests

    config = SyntheticConfig(users=1)
    world = draw_world(config)
    item = np.array([0, 0])
    latent = world.target.latent_IZ[item][:, None, None, :].repeat(2, 2)
    here = Interests(
        category_UJP=np.array([[[0, 0]], [[1, 1]]]),
        latent_UJPZ=latent,
        weight_UJP=np.ones((2, 1, 2)),
        switch_UJ=np.full((2, 1), np.inf),
    )
    found = affinity(world.target, here, np.array([0, 1]), item, np.zeros(2))
    assert found == pytest.approx([1 / 1.35, 0.5 / 0.85])
