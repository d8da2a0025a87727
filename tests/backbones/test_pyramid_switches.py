"""The pyramid's switches beyond the paper: each does what it says, and nothing when it is off."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from world import NOW, attend, build, make_world, row_gradient

from lcn.backbones.lap import Lap
from lcn.backbones.pyramid import divergence, unite
from lcn.data.loader import BatchConfig, Collator
from lcn.errors import ConfigError
from lcn.model import Model, ModelConfig
from lcn.ops import RECENCY_BUCKETS
from lcn.ops.reference import recency_bucket

SMALL = {"width": 8, "heads": 2, "k1": 9, "k2": 4}


def lap(**switches) -> Lap:
    return build(Lap.Config(**{**SMALL, **switches})).eval()


def complete_scope(backbone, world):
    return attend(backbone, world, levels=True).levels[0].kept_CK


def test_the_time_bias_starts_as_nothing_and_then_ranks_by_age():
    world = make_world((40, 40), whole=True)
    plain, biased = lap(), lap(time_bias=True)
    torch.testing.assert_close(attend(plain, world).vector_CW, attend(biased, world).vector_CW)
    assert (complete_scope(plain, world) == complete_scope(biased, world)).all()
    # An older event always scores more: the complete scope keeps the oldest rows.
    times = world.history.rows.time_T
    with torch.no_grad():
        biased.time_bias_V += 1e3 * torch.arange(len(biased.time_bias_V))
    old_CK = complete_scope(biased, world)
    for candidate, (first, last) in enumerate(world.span_C2.tolist()):
        now = world.query.time_C[candidate]
        bucket = recency_bucket(now - times[first:last])
        kept = recency_bucket(now - times[old_CK[candidate].long()])
        assert kept.tolist() == bucket.sort(descending=True).values[:9].tolist()
    assert int(world.query.time_C.min()) >= NOW


def test_the_time_bias_learns_from_the_pooled_complete_scope():
    backbone, world = lap(time_bias=True, use_msa=False, use_fsa=False), make_world((40,))
    attend(backbone, world).vector_CW.square().sum().backward()
    assert backbone.time_bias_V.grad.abs().sum() > 0


def test_the_whole_history_is_one_vector_weighed_by_context():
    world, backbone = make_world((40, 30), whole=True), lap(fism=True)
    rows, width = world.history.rows, world.query.vector_CD.shape[1]
    vector_CW = attend(backbone, world).vector_CW
    plain = lap()
    plain.load_state_dict(backbone.state_dict(), strict=False)
    plain_CW = attend(plain, world).vector_CW
    torch.testing.assert_close(vector_CW[:, : plain_CW.shape[1]], plain_CW)
    buckets_T = backbone.gain_V[-RECENCY_BUCKETS:]
    for candidate, (first, last) in enumerate(world.span_C2.tolist()):
        gain_T = backbone.gain_V[rows.code_TG[first:last].long()].sum(1)
        now = world.query.time_C[candidate]
        gain_T = gain_T + buckets_T[recency_bucket(now - rows.time_T[first:last]).long()]
        own_TD = rows.vector_ID[rows.item_T[first:last].long()]
        whole_D = (gain_T[:, None] * own_TD).sum(0) / math.sqrt(last - first)
        torch.testing.assert_close(vector_CW[candidate, -2 * width : -width], whole_D)
        product_D = whole_D * world.query.vector_CD[candidate]
        torch.testing.assert_close(vector_CW[candidate, -width:], product_D)


def test_recent_items_choose_a_quarter_of_what_passes():
    world, backbone = make_world((40, 30), whole=True), lap(recent_queries=3, k1=8)
    state = backbone.encode(world.history)
    passed_CK = backbone.preceding(state, world.query, world.span_C2, 8)
    vectors = world.history.rows.vector_ID[world.history.rows.item_T.long()]
    for candidate, (first, last) in enumerate(world.span_C2.tolist()):
        own = (vectors[first:last] @ world.query.vector_CD[candidate]).argsort(descending=True)[:6]
        theirs = (vectors[first:last] @ world.query.recent_CD[candidate]).argsort(descending=True)
        new = [row for row in theirs.tolist() if row not in own.tolist()][:2]
        expected = {first + row for row in (*own.tolist(), *new)}
        assert set(passed_CK[candidate].tolist()) == expected


def test_recent_items_come_from_the_model_and_the_newest_rows(toy):
    config = ModelConfig(width=8, field_width=8, short={"width": 8, "heads": 2},
                         backbone=Lap.Config(**{**SMALL, "recent_queries": 2}))  # fmt: skip
    model = Model(config, toy.manifest)
    batch = Collator(toy, "train", BatchConfig(size=64, short=5, lifelong=30))(
        torch.arange(64).numpy()
    )
    recent_CD = model.embed(batch).query.recent_CD
    item_ID = model.item(batch.item_IF)
    for candidate, (first, last) in enumerate(batch.short_target_C2.tolist()):
        newest = batch.target.item_T[max(first, last - 2) : last].long()
        expected = item_ID[newest].mean(0) if len(newest) else torch.zeros(8)
        torch.testing.assert_close(recent_CD[candidate], expected)
    plain = Model(ModelConfig(width=8, field_width=8, backbone=Lap.Config()), toy.manifest)
    assert plain.embed(batch).query.recent_CD is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.integers(0, 4), st.integers(0, 1000))
def test_united_rows_are_unique_and_no_row_is_lost(rows, extra, seed):
    generator = torch.Generator().manual_seed(seed)

    def ranking(width):
        order = torch.randperm(rows, generator=generator)[:width]
        return torch.cat([order, torch.full((width - len(order),), -1)])[None]

    first, second = ranking(6), ranking(6 + extra)
    united = unite(first, second, extra)[0].tolist()
    real = [row for row in united if row >= 0]
    assert len(set(real)) == len(real)
    assert united[:6] == first[0].tolist()
    assert len(real) == min(rows, 6 + extra)
    assert united == real + [-1] * (len(united) - len(real))


def test_the_search_loss_trains_the_complete_scope_alone_and_serves_nothing():
    world, backbone = make_world((40, 0, 40), whole=True), lap(search_loss=0.5)
    assert attend(backbone, world).auxiliary_logit_C is None
    assert attend(lap().train(), world).auxiliary_logit_C is None
    backbone.train()
    vector_ID = world.history.rows.vector_ID.clone().requires_grad_()
    found = attend(backbone, world.with_vectors(vector_ID))
    plain = lap()
    plain.load_state_dict(backbone.state_dict(), strict=False)
    torch.testing.assert_close(found.vector_CW, attend(plain, world).vector_CW)
    found.auxiliary_logit_C.sum().backward()
    assert vector_ID.grad.any() and backbone.search_head[0].weight.grad.any()
    assert backbone.msa.query_BD.grad is None and backbone.fsa.query_BD.grad is None
    assert backbone.auxiliary_weight == 0.5


def test_distillation_is_in_training_only_and_pulls_the_lower_level():
    world, backbone = make_world((40, 40), whole=True), lap(distill=0.1)
    assert attend(backbone, world).distillation is None
    assert attend(lap().train(), world).distillation is None
    backbone.train()
    optimiser = torch.optim.Adam(backbone.msa.parameters(), lr=0.02)
    first = attend(backbone, world).distillation.item()
    for _ in range(60):
        optimiser.zero_grad()
        loss = attend(backbone, world).distillation
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.8 * first
    assert backbone.distill_weight == 0.1


def test_the_teacher_does_not_move():
    world, backbone = make_world((40,)), lap(distill=0.1, use_msa=False).train()
    vector_ID = world.history.rows.vector_ID.clone().requires_grad_()
    moved = attend(backbone, world.with_vectors(vector_ID)).distillation
    assert row_gradient(world, vector_ID, moved).any()
    moved.backward()
    assert backbone.fsa.query_BD.grad is None


def test_divergence_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in "ab")
    teacher[0, 3:] = -math.inf
    student[0, 3:] = -math.inf
    teacher[2] = student[2] = -math.inf
    expected = 0.0
    for c, n in ((0, 3), (1, 5)):
        p, q = teacher[c, :n].softmax(0), student[c, :n].softmax(0)
        expected += float((p * (p / q).log()).sum()) / 2
    assert float(divergence(teacher[:, None], student)) == pytest.approx(expected)
    assert float(divergence(teacher[:, None], teacher)) == pytest.approx(0, abs=1e-12)
    none = torch.full((2, 1, 3), -math.inf)
    assert float(divergence(none, none[:, 0])) == 0


def test_context_fields_are_seen_or_not():
    world = make_world((40, 40), whole=True)
    code_TG = world.history.rows.code_TG

    def out(backbone, column):
        """The interest when one column of codes is drawn anew."""
        other_TG = code_TG.clone()
        if column is not None:
            other_TG[:, column] = other_TG[torch.randperm(len(code_TG)), column]
        rows = replace(world.history.rows, code_TG=other_TG)
        history = replace(world.history, rows=rows)
        return attend(backbone, replace(world, history=history)).vector_CW

    hour = lap(context_fields=("hour",))
    assert torch.equal(out(hour, None), out(hour, 0))
    assert not torch.equal(out(hour, None), out(hour, 1))
    alone = lap(context_fields=(), recency=False)
    assert torch.equal(out(alone, None), out(alone, 0))
    later = replace(world.query, time_C=world.query.time_C * 50)
    for backbone, same in ((alone, True), (hour, False)):
        moved = attend(backbone, replace(world, query=later)).vector_CW
        assert torch.equal(moved, out(backbone, None)) == same
    whole = lap(context_fields=("hour", "kind"))
    torch.testing.assert_close(out(whole, None), out(lap(), None))
    with pytest.raises(ConfigError, match="hour"):
        lap(context_fields=("hours",))


def test_switches_that_cannot_act_are_refused():
    with pytest.raises(ConfigError, match="distill"):
        lap(distill=0.1, use_msa=False, use_fsa=False)
    with pytest.raises(ConfigError, match="recent_queries"):
        lap(recent_queries=2, k1=0)
    with pytest.raises(ConfigError, match=r"3 rows pass it: set k1 to 4"):
        lap(recent_queries=2, k1=3)
    with pytest.raises(ConfigError, match=r"all rows pass it: set k2 to 4"):
        lap(recent_queries=2, use_msa=False, k2=0)
    with pytest.raises(ConfigError, match="each kept row"):
        lap(fsa_query="sequence", use_msa=False, k2=0)
    with pytest.raises(ConfigError, match="fism weighs events"):
        lap(fism=True, context_fields=(), recency=False)
    with pytest.raises(ConfigError, match="time_bias"):
        lap(time_bias=True, use_csa_output=False)
    lap(time_bias=True, use_csa_output=False, search_loss=1.0)
    lap(fsa_query="sequence", k2=0)


def test_all_rows_in_the_focused_scope_can_be_explained():
    world = make_world((40, 3), whole=True)
    found = attend(lap(k2=0), world, levels=True)
    assert [level.name for level in found.levels] == ["complete", "median", "focused"]
    plain = attend(lap(k2=0), world)
    torch.testing.assert_close(found.vector_CW, plain.vector_CW)


def test_without_overlap_the_lifelong_history_ends_where_the_short_one_begins(toy):
    sample = torch.arange(len(toy.samples["train"])).numpy()
    together, apart = (
        Collator(toy, "train", BatchConfig(short=5, lifelong=12, overlap=overlap))(sample)
        for overlap in (True, False)
    )
    assert (apart.lifelong_C2[:, 1] == apart.short_source_C2[:, 0]).all()
    assert (together.lifelong_C2[:, 1] == together.short_source_C2[:, 1]).all()

    def rows(batch, span_C2, column):
        return [getattr(batch.source, column)[a:b].tolist() for a, b in span_C2.tolist()]

    for column in ("item_T", "time_T"):
        short = rows(apart, apart.short_source_C2, column)
        if column == "time_T":
            assert short == rows(together, together.short_source_C2, column)
            lifelong = rows(apart, apart.lifelong_C2, column)
            wide = Collator(toy, "train", BatchConfig(short=5, lifelong=17))(sample)
            whole = rows(wide, wide.lifelong_C2, column)
            for old, new, both in zip(lifelong, short, whole, strict=True):
                assert old + new == both


def test_spans_stay_inside_the_window_without_overlap(toy):
    batch = Collator(toy, "test", BatchConfig(short=5, lifelong=12, overlap=False))(
        torch.arange(40).numpy()
    )
    length_C = batch.lifelong_C2[:, 1] - batch.lifelong_C2[:, 0]
    assert (length_C >= 0).all() and int(length_C.max()) == 12
