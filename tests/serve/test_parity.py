"""Serving gives the offline logits: the same samples through the store and the scorer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from serve_world import BATCH, World, make_world

from lcn.backbones import BACKBONES
from lcn.data.loader import Collator
from lcn.evaluate.predict import predict_logits
from lcn.serve.bundle import load_bundle
from lcn.serve.scorer import Request, Scorer
from lcn.serve.state_cache import StateCache
from lcn.serve.store import open_store
from lcn.serve.store.base import Limits
from lcn.serve.store.bulk import load_dataset


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


def assert_parity(tmp_path, world: World) -> None:
    dataset = world.dataset
    offline_S = predict_logits(world.model, dataset, "test", BATCH)
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
            assert_same_levels(world, online, lease, row)
    assert worst <= 1e-5
    assert np.std(offline_S) > 0.01
    store.close()


def assert_same_levels(world, online, lease, row) -> None:
    batch = Collator(world.dataset, "test", BATCH)(np.array([row]))
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
