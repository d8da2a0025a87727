"""Consistency of search and attention on whole models."""

import math

import numpy as np
import pytest
import torch
from toy import make_toy

from lcn.data.loader import BatchConfig
from lcn.errors import ConfigError
from lcn.evaluate.consistency import (
    ConsistencyConfig,
    measure_consistency,
    measure_twin,
    overlap,
    shared_rows,
    sweep_k1,
)
from lcn.model import Model, ModelConfig

BATCH = BatchConfig(size=64, lifelong=60, short=5)
CONFIG = ConsistencyConfig(size=5, least=10, recall_sizes=(1, 5, 20, 60), limit=0)
SMALL = {"width": 8, "field_width": 8, "hidden": (8,), "short": {"width": 8, "heads": 2}}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("consistency"), users=30)


def model_of(toy, name, seed=0, **settings):
    torch.manual_seed(seed)
    backbone = {"name": name, **settings}
    model = Model(ModelConfig.model_validate({"backbone": backbone, **SMALL}), toy.manifest)
    with torch.no_grad():
        for table in model.item.embed.tables:
            table.weight[2:].normal_()
    return model


@pytest.mark.parametrize("name", ["full", "sim_hard", "sim_soft", "eta", "sdim", "twin", "lap"])
def test_one_definition_for_every_backbone(name, toy):
    found = measure_consistency(model_of(toy, name), toy, "test", BATCH, CONFIG)
    assert 0 <= found.value <= 1 and found.impressions > 10
    assert found.exact == "common"
    samples = toy.samples["test"]
    rows_S = toy.lengths(samples)
    rows_S = np.minimum(rows_S, 60)
    enough_S = rows_S >= 10
    assert found.kept_share == pytest.approx(enough_S.mean())
    assert found.chance == pytest.approx((5 / rows_S[enough_S]).mean())
    by_size = {recall.rows: recall.value for recall in found.recall}
    assert by_size[5] == pytest.approx(found.value)
    assert by_size[1] <= by_size[5] <= by_size[20] <= by_size[60]
    if name != "lap":
        assert by_size[60] == pytest.approx(1.0)
    if name == "full":
        assert found.value == 1.0


def test_impressions_with_too_few_rows_are_left_out(toy):
    samples, model = toy.samples["test"], model_of(toy, "eta")
    rows_S = toy.lengths(samples)
    rows_S = np.minimum(rows_S, BATCH.lifelong)
    for least in (*np.unique(rows_S)[1::5].tolist(), 60, 61):
        config = CONFIG.model_copy(update={"least": int(least)})
        found = measure_consistency(model, toy, "test", BATCH, config)
        assert found.impressions == (rows_S >= least).sum()
        assert found.kept_share == pytest.approx((rows_S >= least).mean())


def test_value_equals_a_plain_computation(toy):
    """SIM Soft by hand: scores of both stages over the padded history."""
    from lcn.data.loader import Collator

    model = model_of(toy, "sim_soft").eval()
    found = measure_consistency(model, toy, "test", BATCH, CONFIG)
    batch = Collator(toy, "test", BATCH)(np.arange(len(toy.samples["test"])))
    values = []
    with torch.no_grad():
        parts, backbone = model.embed(batch), model.backbone
        scoring = backbone.attention.scoring(parts.query.vector_CD, parts.query.time_C)
        rows = parts.history.rows
        for c, (first, last) in enumerate(batch.lifelong_C2.tolist()):
            if last - first < 10:
                continue
            row_ND = rows.vector_ID[rows.item_T[first:last].long()]
            v_D = parts.query.vector_CD[c]
            search_N = (row_ND @ backbone.row_GD.T) @ (backbone.candidate_GD @ v_D)
            exact_HN = scoring.query_CHD[c] @ row_ND.T
            for code in rows.code_TG[first:last].long().unbind(1):
                exact_HN = exact_HN + scoring.bias_CHV[c][:, code]
            from lcn.ops.reference import recency_bucket

            bucket_N = recency_bucket(parts.query.time_C[c] - rows.time_T[first:last]) - 26
            exact_HN = exact_HN + scoring.bias_CHV[c][:, bucket_N]
            weight_N = exact_HN.softmax(1).mean(0)
            exact, got = (set(each.topk(5).indices.tolist()) for each in (weight_N, search_N))
            values.append(len(exact & got) / 5)
    # Equal vectors tie; a plain topk may break ties another way.
    assert found.value == pytest.approx(np.mean(values), abs=0.05)


def test_k1_sweep_rises_to_the_whole_history(toy):
    model = model_of(toy, "lap", k1=12, k2=5)
    sweep = dict(sweep_k1(model, toy, "test", BATCH, CONFIG, sizes=(5, 12, 0)))
    plain = measure_consistency(model, toy, "test", BATCH, CONFIG)
    assert sweep[12] == plain
    all_of_them = {recall.rows: recall.value for recall in sweep[0].recall}
    assert all_of_them[60] == pytest.approx(1.0)
    limited = {recall.rows: recall.value for recall in sweep[5].recall}
    assert limited[60] == limited[5] < 1
    assert model.backbone.config.k1 == 12
    with pytest.raises(ConfigError, match="this is 'full'"):
        sweep_k1(model_of(toy, "full"), toy, "test", BATCH, CONFIG)


def test_twin_three_ways(toy):
    settings = {"heads": 4, "width": 8, "identity_init": False}
    model = model_of(toy, "twin", **settings)
    found = measure_twin(model, toy, "test", BATCH, CONFIG)
    assert found.own.value == 1.0 and found.own.exact == "own"
    assert found.common.value < 1.0 and found.stale is None
    lagging = model_of(toy, "twin", stale_steps=5, **settings)
    with torch.no_grad():
        lagging.backbone.snapshot.query_BD.normal_()
    assert measure_twin(lagging, toy, "test", BATCH, CONFIG).stale.value < 1.0
    assert measure_twin(lagging, toy, "test", BATCH, CONFIG).own.value == 1.0
    with pytest.raises(ConfigError, match="'full'"):
        measure_twin(model_of(toy, "full"), toy, "test", BATCH, CONFIG)


def test_none_has_nothing_to_compare(toy):
    with pytest.raises(ConfigError, match="attends to no history"):
        measure_consistency(model_of(toy, "none"), toy, "test", BATCH, CONFIG)


def test_no_impression_with_enough_rows_is_nan_not_an_error(toy):
    config = CONFIG.model_copy(update={"least": 1000})
    found = measure_consistency(model_of(toy, "eta"), toy, "test", BATCH, config)
    assert math.isnan(found.value) and found.impressions == 0 and found.kept_share == 0


def test_a_limit_draws_the_same_impressions_again(toy):
    config = CONFIG.model_copy(update={"limit": 20})
    model = model_of(toy, "eta")
    one, other = (measure_consistency(model, toy, "test", BATCH, config) for _ in range(2))
    assert one == other and one.impressions == 20


def test_overlap_counts_real_rows_of_short_histories():
    exact_CK = torch.tensor([[4, 2, -1], [7, 8, 9]])
    found_CJ = torch.tensor([[2, 4, -1], [9, 1, 2]])
    assert overlap(exact_CK, found_CJ, torch.tensor([2, 40])).tolist() == [1.0, 1 / 3]
    assert shared_rows(exact_CK, found_CJ).tolist() == [[True, True, False], [True, False, False]]
