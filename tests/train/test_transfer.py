"""Item vectors of one run as the start of another, and single-domain mode."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import config_for
from toy import make_toy

from lcn.data.dataset import Dataset, open_dataset, single_domain
from lcn.data.loader import BatchConfig, Collator
from lcn.errors import CheckpointError, ConfigError
from lcn.evaluate.consistency import ConsistencyConfig, measure_consistency
from lcn.train import loop, open_run, train


@pytest.fixture(scope="module")
def first(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    train(config_for(toy, "train.epochs=1", "train.seed=7"), folder, progress=False)
    return folder


def item_table(folder: Path) -> torch.Tensor:
    return open_run(folder).model.item.embed.tables[0].weight


def test_a_frozen_search_table_is_the_other_runs_item_table_to_the_end(toy, first, tmp_path):
    settings = ("model.search_table=frozen", f"item_vectors_from={first}", "train.epochs=1")
    train(config_for(toy, *settings), tmp_path / "run", progress=False)
    found = open_run(tmp_path / "run").model
    assert torch.equal(found.search_item.embed.tables[0].weight, item_table(first))
    assert not torch.equal(found.item.embed.tables[0].weight, item_table(first))


def test_a_shared_table_starts_from_the_other_run_and_moves(toy, first, tmp_path, monkeypatch):
    seen, build = [], loop.build_optimisers

    def spy(modules, config):
        seen.append(modules[0].item.embed.tables[0].weight.detach().clone())
        return build(modules, config)

    monkeypatch.setattr(loop, "build_optimisers", spy)
    config = config_for(toy, f"item_vectors_from={first}", "train.epochs=1")
    train(config, tmp_path / "run", progress=False)
    assert torch.equal(seen[0], item_table(first))
    assert not torch.equal(item_table(tmp_path / "run"), item_table(first))


def test_vectors_of_another_dataset_width_or_nowhere_are_refused(toy, first, tmp_path):
    other = make_toy(tmp_path / "other", users=12)
    with pytest.raises(CheckpointError, match="would mean other items"):
        train(config_for(other, f"item_vectors_from={first}"), tmp_path / "a", progress=False)
    narrow = config_for(toy, f"item_vectors_from={first}", "model.field_width=4")
    with pytest.raises(CheckpointError, match=r"embed\.tables\.0\.weight"):
        train(narrow, tmp_path / "b", progress=False)
    with pytest.raises(CheckpointError, match=r"has no best\.safetensors"):
        train(config_for(toy, f"item_vectors_from={tmp_path}"), tmp_path / "c", progress=False)
    with pytest.raises(ConfigError, match="set item_vectors_from"):
        config_for(toy, "model.search_table=frozen")


def test_in_single_domain_mode_the_lifelong_history_is_the_targets_own(toy):
    sample = np.arange(len(toy.samples["train"]))[-50:]
    collate = Collator(
        open_dataset(toy.folder, lifelong="target"),
        "train",
        BatchConfig(size=50, lifelong=30, short=5),
    )
    batch = collate(sample)
    store, rows = toy.events["target"], toy.samples["train"]
    for c, at in enumerate(batch.sample_C.tolist()):
        oldest = max(store.offsets_U[rows.user_S[at]], rows.target_end_S[at] - 30)
        low, high = batch.lifelong_C2[c].tolist()
        items = batch.address_I[batch.source.item_T[low:high].long()].tolist()
        assert items == store.item_E[oldest : rows.target_end_S[at]].tolist()


def test_in_single_domain_mode_source_events_change_nothing(toy, tmp_path):
    settings = ("lifelong_domain=target", "objectives=[]", "train.epochs=1")
    train(config_for(toy, *settings), tmp_path / "run", progress=False)
    run, whole = open_run(tmp_path / "run"), open_dataset(toy.folder)
    source = whole.events["source"]
    item_E = np.random.default_rng(0).permutation(np.asarray(source.item_E))
    edited = replace(whole, events={**whole.events, "source": replace(source, item_E=item_E)})
    before = run.predict("test").logit_S
    after = replace(run, dataset=single_domain(edited)).predict("test").logit_S
    assert np.array_equal(before, after)
    assert not np.array_equal(before, replace(run, dataset=whole).predict("test").logit_S)
    sizes = ConsistencyConfig(size=4, least=8)
    found = measure_consistency(run.model, run.dataset, "test", run.config.batch, sizes)
    assert 0 <= found.value <= 1


def test_objectives_of_two_domains_are_refused_in_single_domain_mode(toy):
    with pytest.raises(ConfigError, match="crp"):
        config_for(toy, "lifelong_domain=target")
