"""Serving gives the offline logits: the same samples through the store and the scorer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from serve_world import BATCH, World, make_world

from lcn.backbones import BACKBONES
from lcn.data.dataset import Dataset, EventStore
from lcn.data.loader import BatchConfig, Collator
from lcn.errors import StoreError
from lcn.evaluate.predict import predict_logits
from lcn.serve.bundle import load_bundle
from lcn.serve.scorer import Request, Scorer
from lcn.serve.state_cache import StateCache
from lcn.serve.store import open_store
from lcn.serve.store.base import Limits
from lcn.serve.store.bulk import load_dataset
from lcn.serve.store.records import TIME


@pytest.mark.parametrize("backbone", BACKBONES)
def test_replayed_samples_have_offline_logits(tmp_path, backbone: str) -> None:
    world = make_world(tmp_path, backbone)
    assert_parity(tmp_path, world)


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"norm_csa": "raw", "norm_msa": "mean"}},
        {"options": {"use_msa": False, "use_fsa": False}},
        {"search_table": "own"},
        {"products": True},
        {"options": {"recent_queries": 3}},
        {"search_metric": "cosine"},
        {"history_vectors": "bfloat16"},
    ],
    ids=["raw", "csa-only", "own-search", "products", "recent", "cosine", "half-width"],
)
def test_variants_of_the_pyramid_too(tmp_path, settings: dict) -> None:
    assert_parity(tmp_path, make_world(tmp_path, "lap", **settings))


@pytest.mark.parametrize("overlap", [True, False])
def test_histories_are_cut_as_in_training(tmp_path, overlap: bool) -> None:
    """Without overlap the lifelong history ends where the short-term one begins."""
    batch = BATCH.model_copy(update={"overlap": overlap, "lifelong": 12, "short": 9})
    assert_parity(tmp_path, make_world(tmp_path, "lap", batch=batch), batch)


def assert_parity(tmp_path, world: World, config: BatchConfig = BATCH) -> None:
    dataset = world.dataset
    offline_S = predict_logits(world.model, dataset, "test", config)
    bundle = load_bundle(world.bundle)
    fields = tuple(field.name for field in dataset.manifest.event_context)
    limits = Limits(events=100_000)
    store = open_store(tmp_path / "store", fields, limits)
    load_dataset(store, dataset)
    scorer = Scorer(bundle, fields, limits)
    cache = StateCache(scorer, store, 1 << 30)
    samples = dataset.samples["test"]
    worst = 0.0
    for row in range(0, len(samples), 3):
        user, moment = int(samples.user_S[row]), int(samples.time_S[row])
        lease = cache.get(f"u{user}", moment)
        request = Request(
            np.array([samples.item_S[row]]),
            np.array(samples.candidate_SA[row : row + 1]),
            np.array(samples.context_SR[row]),
            np.array(dataset.user_UP[user]),
            moment,
        )
        online = scorer.score(lease.view, request, levels=True)
        worst = max(worst, abs(float(online.logit_C[0] - offline_S[row])))
        if row % 10 == 0:
            assert_same_levels(world, online, lease, row, config)
    assert worst <= 1e-5
    assert np.std(offline_S) > 0.01
    store.close()


def assert_same_levels(world, online, lease, row, config) -> None:
    batch = Collator(world.dataset, "test", config)(np.array([row]))
    with torch.inference_mode():
        offline = world.model(batch, levels=True).interest.levels
    time_T = batch.source.time_T
    item_T = batch.address_I[batch.source.item_T.long()]
    for ours, theirs in zip(online.levels, offline, strict=True):
        mine = {
            (int(lease.view.source.rows.time_T[k]), int(lease.view.source.address_T[k]))
            for k in ours.kept_CK[0]
            if k >= 0
        }
        expected = {(int(time_T[k]), int(item_T[k])) for k in theirs.kept_CK[0] if k >= 0}
        assert mine == expected


def test_a_newer_dataset_adds_what_is_new(tmp_path, world) -> None:
    """Another dataset over the same logs: positions move, events stay the same events."""
    dataset = world.dataset
    fields = tuple(field.name for field in dataset.manifest.event_context)
    store = open_store(tmp_path / "store", fields, Limits(events=100_000))
    total = sum(len(events.item_E) for events in dataset.events.values())
    whole = load_dataset(store, without_first(dataset))
    assert 0 < whole < total
    assert load_dataset(store, dataset) == total - whole
    assert load_dataset(store, dataset) == 0
    user = next(user for user in range(1, 40) if np.diff(dataset.events["source"].offsets_U)[user])
    rows = slice(*dataset.events["source"].offsets_U[user : user + 2])
    assert store.read(f"u{user}", 0).source[:, TIME].tolist() == list(
        dataset.events["source"].time_E[rows]
    )
    store.close()


def without_first(dataset: Dataset) -> Dataset:
    """The dataset of a log whose oldest event of each user is gone."""
    events = {}
    for domain, store in dataset.events.items():
        starts = store.offsets_U[:-1][np.diff(store.offsets_U) > 0]
        kept = np.ones(len(store.item_E), bool)
        kept[starts] = False
        counts = np.maximum(np.diff(store.offsets_U) - 1, 0)
        events[domain] = EventStore(
            offsets_U=np.r_[0, np.cumsum(counts)],
            item_E=store.item_E[kept],
            time_E=store.time_E[kept],
            context_EG=store.context_EG[kept],
        )
    return replace(dataset, events=events)


def test_a_dataset_without_a_field_of_the_store_is_refused(tmp_path, world) -> None:
    store = open_store(tmp_path / "store", ("kind", "device"), Limits())
    with pytest.raises(StoreError, match="no event context field 'device'"):
        load_dataset(store, world.dataset)
    store.close()
