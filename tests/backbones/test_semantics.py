"""What the papers mean, pinned down; numbers are those of the methods reference, section 6."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from world import (
    CONTEXT,
    FEATURES,
    WIDTH,
    attend,
    build,
    kept_by_last_level,
    make_world,
    row_gradient,
    rows_in_span,
)

from lcn import ops
from lcn.backbones.base import rank_by_weight
from lcn.backbones.eta import Eta
from lcn.backbones.full import FullAttention
from lcn.backbones.lap import Lap
from lcn.backbones.sdim import Sdim
from lcn.backbones.sim_hard import SimHard
from lcn.backbones.sim_soft import SimSoft, draw_rows
from lcn.backbones.twin import Twin
from lcn.evaluate.consistency import overlap
from lcn.nn.attention import ContextTable
from lcn.ops import HistoryRows
from lcn.ops.bucket_sum import bucket_sum
from lcn.ops.simhash import Codes, bucket_codes, code_topk, simhash

SMALL = {"width": 8, "heads": 2}


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "config",
    [
        FullAttention.Config(**SMALL),
        SimHard.Config(keep=4, **SMALL),
        SimSoft.Config(keep=4, **SMALL),
        Eta.Config(keep=4, **SMALL),
        Sdim.Config(),
        Twin.Config(keep=4, **SMALL),
        Lap.Config(k1=9, k2=4, **SMALL),
    ],
    ids=lambda config: config.name,
)
def test_1_padding_changes_nothing(config):
    """The reference pads to the longest span; a longer companion must not be felt."""
    world, backbone = make_world((5, 40)), build(config).eval()
    short = world.of(torch.arange(3))
    with ops.force("reference"):
        padded = attend(backbone, world, levels=True)
        alone = attend(backbone, short, levels=True)
    close(padded.vector_CW[:3], alone.vector_CW, 1e-6)
    for long, brief in zip(padded.levels, alone.levels, strict=True):
        both = min(long.kept_CK.shape[1], brief.kept_CK.shape[1])
        assert torch.equal(long.kept_CK[:3, :both], brief.kept_CK[:, :both])


def test_2_permuted_rows_are_selected_where_they_went():
    """Reversing a history reverses what LAP keeps; the conformance suite has all backbones."""
    world = make_world((20,), whole=True)
    backbone = build(Lap.Config(k1=9, k2=4, **SMALL)).eval()
    rows = world.history.rows
    turned = replace(
        rows, item_T=rows.item_T.flip(0), code_TG=rows.code_TG.flip(0), time_T=rows.time_T.flip(0)
    )
    before = attend(backbone, world, levels=True)
    after = attend(
        backbone, replace(world, history=replace(world.history, rows=turned)), levels=True
    )
    close(after.vector_CW, before.vector_CW)
    for one, other in zip(before.levels, after.levels, strict=True):
        assert torch.equal(one.kept_CK, torch.where(other.kept_CK >= 0, 19 - other.kept_CK, -1))


def test_3_a_negative_score_beats_an_empty_slot():
    """Scores times mask would let padding (0) win over every negatively scored row."""
    world = make_world((30, 60), whole=True)
    vector_ID = -world.history.rows.vector_ID.abs()
    query = replace(world.query, vector_CD=world.query.vector_CD.abs())
    world = replace(world.with_vectors(vector_ID), query=query)
    backbone = build(Lap.Config(k1=40, k2=35, **SMALL)).eval()
    for level in attend(backbone, world, levels=True).levels:
        assert ((level.kept_CK[:3] >= 0).sum(1) == 30).all()
        assert (level.kept_CK[3:] >= 30).all()


@pytest.mark.parametrize("integrated", [True, False])
def test_4_gradient_reach_of_lap(integrated):
    config = Lap.Config(k1=9, k2=4, use_csa_output=integrated, use_msa_output=integrated, **SMALL)
    reached_T, kept_T, inside_T = _reach(config)
    assert torch.equal(reached_T, inside_T if integrated else kept_T)
    assert kept_T.sum() < inside_T.sum()


@pytest.mark.parametrize(
    "config",
    [Eta.Config(keep=4, **SMALL), Twin.Config(keep=4, **SMALL), SimSoft.Config(keep=4, **SMALL)],
    ids=lambda config: config.name,
)
def test_4_gradient_reach_of_two_stages(config):
    """Nothing flows to unselected rows; in SIM Soft only the search's own loss reaches them."""
    reached_T, kept_T, _ = _reach(config)
    assert torch.equal(reached_T, kept_T)


def _reach(config):
    world, backbone = make_world(per_user=1), build(config)
    vector_ID = world.history.rows.vector_ID.clone().requires_grad_()
    world = world.with_vectors(vector_ID)
    loss = attend(backbone, world).vector_CW.square().sum()
    kept_T = kept_by_last_level(backbone, world).any(0)
    return row_gradient(world, vector_ID, loss), kept_T, rows_in_span(world).any(0)


def test_5_without_integration_the_median_scope_is_untrained():
    backbone = build(Lap.Config(k1=9, k2=4, use_csa_output=False, use_msa_output=False, **SMALL))
    attend(backbone, make_world()).vector_CW.square().sum().backward()
    assert backbone.msa.query_BD.grad is None and backbone.msa.key_BX.grad is None
    assert (backbone.fsa.query_BD.grad != 0).any()


@pytest.mark.parametrize("norm", ["mean", "raw", "raw_ln"])
def test_6_the_norm_never_changes_the_selection(norm):
    world = make_world()
    kept = []
    for each in ("softmax", norm):
        config = Lap.Config(k1=9, k2=4, norm_csa=each, norm_msa=each, **SMALL)
        backbone = build(config).eval()
        if kept:
            backbone.load_state_dict(build(Lap.Config(k1=9, k2=4, **SMALL)).state_dict(), False)
        kept.append([level.kept_CK for level in attend(backbone, world, levels=True).levels])
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))


def test_7_raw_complete_scope_is_the_gram_matrix_times_the_candidate():
    world = make_world((50,), per_user=2, whole=True)
    config = Lap.Config(norm_csa="raw", use_msa=False, use_fsa=False)
    found = attend(build(config), world).vector_CW
    row_TD = world.history.rows.vector_ID[world.history.rows.item_T.long()]
    close(found, world.query.vector_CD @ (row_TD.T @ row_TD), 1e-4)


def test_8_simhash_and_bucket_probabilities():
    """The share of unequal bits is θ/π; τ = 3 buckets collide with (1 − θ/π)³."""
    generator = torch.Generator().manual_seed(5)
    pair_2D = torch.randn(2, 64, generator=generator)
    angle = math.acos(torch.cosine_similarity(pair_2D[0], pair_2D[1], 0).item())
    code = simhash(pair_2D, torch.randn(64, 100_000, generator=generator))
    apart = sum(int(byte).bit_count() for byte in code[0] ^ code[1]) / 100_000
    assert abs(apart - angle / math.pi) < 0.01
    bucket = bucket_codes(pair_2D, torch.randn(64, 20_000, 3, generator=generator))
    share = (bucket[0] == bucket[1]).double().mean().item()
    assert abs(share - (1 - angle / math.pi) ** 3) < 0.02


def test_9_long_codes_rank_like_cosines():
    generator = torch.Generator().manual_seed(6)
    row_ID, query_D = (
        torch.randn(2000, 64, generator=generator),
        torch.randn(1, 64, generator=generator),
    )
    plane_DB = torch.randn(64, 4096, generator=generator)
    codes = Codes(
        simhash(row_ID, plane_DB), torch.arange(2000, dtype=torch.int32), simhash(query_D, plane_DB)
    )
    kept_K = code_topk(codes, torch.tensor([[0, 2000]]), 2000, "bits")[0]
    rank_I = torch.empty(2000).index_put((kept_K,), torch.arange(2000.0))
    cosine_I = torch.cosine_similarity(row_ID, query_D)
    truth_I = (-cosine_I).argsort().argsort().float()
    assert torch.corrcoef(torch.stack([rank_I, truth_I]))[0, 1] > 0.95


def test_9_few_bits_find_few_of_the_nearest():
    """Of the cosine top-50 of 2000, 32 bits keep one in seven, 256 bits two in five."""
    generator = torch.Generator().manual_seed(7)
    row_ID, query_CD = (torch.randn(n, 64, generator=generator) for n in (2000, 40))
    cosine_CI = torch.nn.functional.normalize(query_CD) @ torch.nn.functional.normalize(row_ID).T
    exact_CK = cosine_CI.topk(50).indices
    for bits, low, high in ((32, 0.10, 0.20), (256, 0.34, 0.46)):
        plane_DB = torch.randn(64, bits, generator=generator)
        codes = Codes(
            simhash(row_ID, plane_DB),
            torch.arange(2000, dtype=torch.int32),
            simhash(query_CD, plane_DB),
        )
        found_CK = code_topk(codes, torch.tensor([[0, 2000]]).expand(40, 2), 50, "bits")
        share = overlap(exact_CK, found_CK, torch.full((40,), 2000)).mean()
        assert low < share < high


def test_10_bucket_sums_equal_the_boolean_collisions():
    world, backbone = make_world(), build(Sdim.Config())
    rows = world.history.rows
    code_IG = bucket_codes(rows.vector_ID, backbone.plane_DGP)
    query_CG = bucket_codes(world.query.vector_CD, backbone.plane_DGP)
    found = bucket_sum(rows.vector_ID, Codes(code_IG, rows.item_T, query_CG), world.span_C2)
    hit_CTG = code_IG[rows.item_T.long()][None] == query_CG[:, None]
    hit_CTG &= rows_in_span(world)[..., None]
    row_TD = rows.vector_ID[rows.item_T.long()]
    expected_CGD = torch.einsum("ctg,td->cgd", hit_CTG.float(), row_TD)
    close(found.sum_CGD, expected_CGD)
    unit_CGD = torch.nn.functional.normalize(expected_CGD, dim=-1)
    close(attend(backbone, world).vector_CW, unit_CGD.mean(1))
    empty_CG = ~hit_CTG.any(1)
    assert empty_CG.any() and (found.sum_CGD[empty_CG] == 0).all()


def test_10_weights_norm_equals_normalised_collision_counts():
    world, backbone = make_world(), build(Sdim.Config(norm="weights"))
    rows = world.history.rows
    code_TG = bucket_codes(rows.vector_ID, backbone.plane_DGP)[rows.item_T.long()]
    query_CG = bucket_codes(world.query.vector_CD, backbone.plane_DGP)
    count_CT = (code_TG[None] == query_CG[:, None]).float().mean(-1) * rows_in_span(world)
    weight_CT = torch.nn.functional.normalize(count_CT, dim=-1)
    row_TD = rows.vector_ID[rows.item_T.long()]
    close(attend(backbone, world).vector_CW, weight_CT @ row_TD)


def test_11_without_cross_fields_alpha_is_the_scaled_dot_product():
    from lcn.backbones.twin import TwinAttention

    table = ContextTable((), 4, recency=False, std=1.0)
    torch.manual_seed(0)
    attention = TwinAttention(WIDTH, 8, 2, table, identity=False)
    query_CD, row_TD = torch.randn(3, WIDTH), torch.randn(5, WIDTH)
    rows = HistoryRows(
        row_TD, torch.arange(5, dtype=torch.int32), torch.zeros(5, 0, dtype=torch.int32),
        torch.zeros(5, dtype=torch.int64),
    )  # fmt: skip
    span_C2 = torch.tensor([[0, 5]]).expand(3, 2)
    score_SH = ops.span_score(rows, span_C2, attention.scoring(query_CD, torch.zeros(3).long()))
    q = (query_CD @ attention.query_BD.T).unflatten(1, (2, 4))
    k = (row_TD @ attention.key_BD.T).unflatten(1, (2, 4))
    close(score_SH.view(3, 5, 2), torch.einsum("chb,thb->cth", q, k) / math.sqrt(4))


def test_11_cross_fields_equal_a_dense_block_diagonal_projection():
    world, twin = make_world(), build(Twin.Config(**SMALL))
    with torch.no_grad():
        twin.attention.beta_HJ.normal_()
    scoring = twin.final_scoring(world.query)
    score_SH = ops.span_score(world.history.rows, world.span_C2, scoring)
    rows, attention = world.history.rows, twin.attention
    table = attention.context
    row_CN, mask_CN = ops.reference.rows_of_span(world.span_C2)
    elapsed_CN = world.query.time_C[:, None] - rows.time_T[row_CN]
    bucket_CN = ops.reference.recency_bucket(elapsed_CN) + sum(field.size for field in CONTEXT)
    code_CNJ = torch.cat([rows.code_TG[row_CN].long(), bucket_CN[..., None]], -1)
    cross_CNX = table.embedding_VE[code_CNJ].flatten(2)
    fields, width = attention.cross_HJE.shape[1:]
    for head in range(2):
        dense_XJ = torch.zeros(fields * width, fields)
        for j in range(fields):
            dense_XJ[j * width : (j + 1) * width, j] = attention.cross_HJE[head, j]
        bias_CN = cross_CNX @ dense_XJ @ attention.beta_HJ[head]
        item_CN = (
            torch.einsum(
                "cb,cnb->cn",
                (world.query.vector_CD @ attention.query_BD.T).unflatten(1, (2, 4))[:, head],
                (rows.vector_ID[rows.item_T[row_CN].long()] @ attention.key_BD.T)
                .unflatten(2, (2, 4))[:, :, head],
            )
            / 2
        )  # fmt: skip
        close(score_SH[:, head], (item_CN + bias_CN)[mask_CN].detach())


def test_11_round_robin_returns_the_smallest_best_ranks():
    world, twin = (
        make_world((60,), whole=True),
        build(Twin.Config(keep=7, identity_init=False, **SMALL)),
    )
    kept_CK = twin.preceding(twin.encode(world.history), world.query, world.span_C2, 7)
    score_SH = ops.span_score(world.history.rows, world.span_C2, twin.final_scoring(world.query))
    score_CHN = score_SH.view(3, 60, 2).transpose(1, 2)
    rank_CHN = (-score_CHN).argsort(-1).argsort(-1)
    best_CN, mean_CN = rank_CHN.amin(1), score_CHN.mean(1)
    for c in range(3):
        order = sorted(range(60), key=lambda n, c=c: (best_CN[c, n], -mean_CN[c, n]))
        assert kept_CK[c].tolist() == order[:7]


@pytest.mark.parametrize("heads", [1, 4])
def test_11_synchronous_twin_is_exactly_consistent_with_itself(heads):
    world = make_world((200, 150), whole=True)
    twin = build(Twin.Config(width=8, heads=heads, identity_init=False))
    rows = world.history.rows
    found_CK = twin.preceding(twin.encode(world.history), world.query, world.span_C2, 50)
    own_CK = twin.own_final(twin.encode(world.history), world.query, world.span_C2, 50)
    rows_C = world.span_C2[:, 1] - world.span_C2[:, 0]
    assert (overlap(own_CK, found_CK, rows_C) == 1).all()
    common_CK = rank_by_weight(rows, world.span_C2, twin.final_scoring(world.query), 50)
    value = overlap(common_CK, found_CK, rows_C).mean()
    assert value == 1 if heads == 1 else value < 1


def test_12_tied_median_scope_ranks_by_the_sum_of_the_heads():
    world = make_world()
    lap = build(Lap.Config(k1=9, k2=4, width=8, heads=4, tie_msa_fsa=True))
    rows, span_C2, query = world.history.rows, world.span_C2, world.query
    head_SH = ops.span_score(rows, span_C2, lap.fsa.scoring(query.vector_CD, query.time_C))
    one_S1 = ops.span_score(rows, span_C2, lap.msa.scoring(query.vector_CD, query.time_C, heads=1))
    close(head_SH.sum(1) * math.sqrt(8 / 4), one_S1[:, 0] * math.sqrt(8))


def test_16_the_mean_over_equal_queries_is_the_single_query():
    """With a zero W^Q for rows, `sequence` asks K2 times the same question."""
    world = make_world()
    parts = {"k1": 9, "k2": 4, **SMALL}
    sequence = build(Lap.Config(fsa_query="sequence", **parts))
    with torch.no_grad():
        sequence.sequence_query.weight.zero_()
    single = build(Lap.Config(**parts))
    single.load_state_dict(sequence.state_dict(), strict=False)
    close(attend(sequence, world).vector_CW, attend(single, world).vector_CW)


def test_16_each_answer_passes_the_feed_forward_network_before_the_mean():
    world = make_world((12,), per_user=1, whole=True)
    lap = build(Lap.Config(fsa_query="sequence", k1=9, k2=4, **SMALL))
    kept_K = attend(lap, world, levels=True).levels[1].kept_CK[0]
    answers = []
    for row in kept_K:
        item_D = world.history.rows.vector_ID[world.history.rows.item_T[row].long()]
        asked_CB = lap.sequence_query(item_D[None])
        scoring = lap.fsa.scoring(world.query.vector_CD, world.query.time_C, extra_CB=asked_CB)
        pool = ops.kept_pool(world.history.rows, kept_K[None], scoring)
        answers.append(lap.ffn(lap.fsa.values(pool))[0])
    focused_B = attend(lap, world).vector_CW[0, -8:]
    close(focused_B, torch.stack(answers).mean(0))


def test_24_consistency_of_random_scores_is_chance_and_of_equal_scores_one():
    generator = torch.Generator().manual_seed(8)
    rows, count = 400, 300
    exact_CK, found_CK = (
        torch.rand(count, rows, generator=generator).argsort(1)[:, :50] for _ in range(2)
    )
    rows_C = torch.full((count,), rows)
    value_C = overlap(exact_CK, found_CK, rows_C)
    error = value_C.std() / math.sqrt(count)
    assert abs(value_C.mean() - 50 / rows) < 3 * error
    assert (overlap(exact_CK, exact_CK.flip(1), rows_C) == 1).all()


def test_hard_search_keeps_the_most_recent_rows_of_the_same_key():
    world, backbone = make_world((40,), whole=True), build(SimHard.Config(keep=4, **SMALL))
    key_T = world.history.item_IF[world.history.rows.item_T.long(), 1]
    kept_CK = attend(backbone, world, levels=True).levels[0].kept_CK
    for c, kept_K in enumerate(kept_CK):
        key = int(world.query.field_CF[c, 1])
        matches = (key_T == key).nonzero()[:, 0].flip(0)[:4].tolist() if key >= 2 else []
        assert kept_K[kept_K >= 0].tolist() == matches


def test_eta_attends_to_the_rows_of_smallest_hamming_distance():
    world, backbone = make_world((40,), whole=True), build(Eta.Config(keep=4, **SMALL))
    rows = world.history.rows
    sign_TB = rows.vector_ID[rows.item_T.long()] @ backbone.plane_DB > 0
    sign_CB = world.query.vector_CD @ backbone.plane_DB > 0
    apart_CT = (sign_TB[None] != sign_CB[:, None]).sum(-1)
    kept_CK = attend(backbone, world, levels=True).levels[0].kept_CK
    for c, kept_K in enumerate(kept_CK.tolist()):
        assert kept_K == sorted(range(40), key=lambda t, c=c: (apart_CT[c, t], -t))[:4]


def test_sub_sampled_auxiliary_task_draws_different_rows_of_the_span():
    span_C2 = torch.tensor([[3, 40], [10, 12], [5, 5]])
    torch.manual_seed(0)
    drawn_CK = draw_rows(span_C2, 8)
    assert len(set(drawn_CK[0].tolist())) == 8
    assert ((drawn_CK[0] >= 3) & (drawn_CK[0] < 40)).all()
    assert sorted(drawn_CK[1].tolist()) == [-1] * 6 + [10, 11]
    assert (drawn_CK[2] == -1).all()


def test_sub_sampling_leaves_the_selection_alone_and_inference_whole():
    world = make_world()
    whole = build(SimSoft.Config(keep=4, **SMALL))
    part = build(SimSoft.Config(keep=4, auxiliary_rows=3, **SMALL))
    trained = attend(part, world)
    full = attend(whole, world)
    close(trained.vector_CW, full.vector_CW)
    assert not torch.allclose(trained.auxiliary_logit_C, full.auxiliary_logit_C)
    close(attend(part.eval(), world).auxiliary_logit_C, full.auxiliary_logit_C)


def test_stale_twin_searches_with_its_snapshot():
    world, twin = make_world(whole=True), build(Twin.Config(keep=4, stale_steps=3, **SMALL))
    searched = []
    for _ in range(7):
        attend(twin, world)
        searched.append(twin.snapshot.query_BD.detach().clone())
        with torch.no_grad():
            twin.attention.query_BD.add_(0.5)
    changed = [not torch.equal(a, b) for a, b in pairwise(searched)]
    assert changed == [False, False, True, False, False, True]
    steps = int(twin.steps)
    attend(twin.eval(), world)
    assert int(twin.steps) == steps


def test_own_search_table_ranks_by_search_vectors_and_pools_item_vectors():
    world = make_world(whole=True)
    search_ID = torch.randn(
        world.history.rows.vector_ID.shape, generator=torch.Generator().manual_seed(4)
    )
    history = replace(world.history, search_ID=search_ID)
    query = replace(world.query, search_CD=torch.randn(len(world.span_C2), WIDTH))
    lap = build(Lap.Config(use_msa=False, use_fsa=False)).eval()
    own = replace(world, history=history, query=query)
    found_CD = attend(lap, own).vector_CW
    row_TD = world.history.rows.vector_ID[world.history.rows.item_T.long()]
    key_TD = search_ID[world.history.rows.item_T.long()]
    score_CT = query.search_CD @ key_TD.T / math.sqrt(WIDTH)
    score_CT = score_CT.masked_fill(~rows_in_span(own), -torch.inf)
    close(found_CD, score_CT.softmax(1).nan_to_num() @ row_TD)


def test_own_search_table_of_twin_scores_with_search_vectors_only():
    world = make_world(whole=True)
    generator = torch.Generator().manual_seed(4)
    items, count = len(world.history.rows.vector_ID), len(world.span_C2)
    search_ID = torch.randn(items, WIDTH, generator=generator)
    query = replace(world.query, search_CD=torch.randn(count, WIDTH, generator=generator))
    twin = build(Twin.Config(keep=4, **SMALL)).eval()
    with torch.no_grad():
        twin.attention.context.embedding_VE.zero_()
    found = []
    for factor in (1.0, -3.0):
        rows = replace(world.history.rows, vector_ID=factor * world.history.rows.vector_ID)
        history = replace(world.history, rows=rows, search_ID=search_ID)
        found.append(attend(twin, replace(world, history=history, query=query)).vector_CW)
    # Values are linear in the item vectors, weights know nothing of them.
    close(found[1], -3.0 * found[0])
    assert (found[0][3:] != 0).any(1).all()


def test_the_common_exact_set_is_ranked_by_the_mean_of_softmax_weights():
    world = make_world((0, 60, 90), whole=True)
    full = build(FullAttention.Config(width=8, heads=4))
    with torch.no_grad():
        full.attention.query_BD.mul_(20.0)
    rows, span_C2 = world.history.rows, world.span_C2
    scoring = full.final_scoring(world.query)
    found_CK = rank_by_weight(rows, span_C2, scoring, 10)
    row_CN, mask_CN = ops.reference.rows_of_span(span_C2)
    score_CHN = ops.reference.score_rows(rows, row_CN, mask_CN, scoring).double()
    weight_CN = score_CHN.softmax(-1).mean(1).masked_fill(~mask_CN, -torch.inf)
    assert (found_CK[:3] == -1).all()
    expected_CK = row_CN.gather(1, weight_CN.topk(10).indices)
    assert torch.equal(found_CK[3:], expected_CK[3:])
    by_mean_score_CK = row_CN.gather(1, score_CHN.mean(1).topk(10).indices)
    assert not torch.equal(found_CK[3:], by_mean_score_CK[3:])


def test_lap_of_another_k1_shares_parameters_and_leaves_the_original():
    lap = build(Lap.Config(k1=9, k2=4, **SMALL))
    other = lap.passing(0)
    assert other.config.k1 == 0 and lap.config.k1 == 9
    assert other.fsa is lap.fsa


def test_features_name_the_nearest_field():
    from lcn.errors import ConfigError

    with pytest.raises(ConfigError, match="'category'"):
        SimHard(SimHard.Config(key="categori"), FEATURES)
