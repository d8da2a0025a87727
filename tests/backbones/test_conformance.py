"""One suite that every backbone passes, with all its switches."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pydantic import TypeAdapter
from world import (
    FEATURES,
    LIFELONG,
    VARIANTS,
    attend,
    build,
    kept_by_last_level,
    make_world,
    row_gradient,
    rows_in_span,
)

from lcn import ops
from lcn.backbones import BACKBONES, BackboneConfig
from lcn.config import dump_config
from lcn.train.checkpoint import load_weights, save_weights

EVERY = pytest.mark.parametrize("name", list(VARIANTS))
EVERY_LIFELONG = pytest.mark.parametrize("name", LIFELONG)


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@EVERY
def test_config_survives_the_round_trip(name):
    import yaml

    config = VARIANTS[name]
    adapter = TypeAdapter(BackboneConfig)
    assert adapter.validate_python(yaml.safe_load(dump_config(config))) == config
    assert adapter.validate_json(json.dumps(config.model_dump(mode="json"))) == config


def test_every_backbone_says_where_it_comes_from_and_what_it_assumes():
    for name, kind in BACKBONES.items():
        assert kind.source and kind.assumes, name
        assert kind.Config().name == name


@EVERY
def test_the_same_seed_gives_the_same_answer(name):
    world = make_world()
    one, other = (attend(build(VARIANTS[name], seed=4), world).vector_CW for _ in range(2))
    assert torch.equal(one, other)
    assert one.shape == (len(world.span_C2), build(VARIANTS[name]).width)


@EVERY_LIFELONG
def test_spans_equal_the_padded_reference(name):
    """Values and every gradient, fast ops against padded gathers."""
    world, backbone = make_world(), build(VARIANTS[name])
    answers = []
    for how in ("auto", "reference"):
        vector_ID = world.history.rows.vector_ID.clone().requires_grad_()
        backbone.zero_grad()
        with ops.force(how):
            interest = attend(backbone, world.with_vectors(vector_ID))
            loss = interest.vector_CW.square().sum()
            if interest.auxiliary_logit_C is not None:
                loss = loss + interest.auxiliary_logit_C.square().sum()
            loss.backward()
        gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
        answers.append([interest.vector_CW, vector_ID.grad, *gradients])
    for fast, slow in zip(*answers, strict=True):
        scale = slow.abs().max().clamp(min=1.0)
        close(fast / scale, slow / scale, 1e-4)


@EVERY
def test_candidates_do_not_see_each_other(name):
    world, backbone = make_world(), build(VARIANTS[name]).eval()
    together = attend(backbone, world).vector_CW
    order_C = torch.randperm(len(together), generator=torch.Generator().manual_seed(0))
    close(attend(backbone, world.of(order_C)).vector_CW, together[order_C])
    for c in range(len(together)):
        close(attend(backbone, world.of(torch.tensor([c]))).vector_CW[0], together[c])


@EVERY_LIFELONG
def test_the_order_of_events_is_only_what_their_times_say(name):
    """Rows permuted with their contexts and times: the same interest.

    Searches by code break ties by recency, so they are given room for every row.
    """
    config = VARIANTS[name]
    if config.name in ("sim_hard", "eta", "sdim"):
        config = config.model_copy(update={"keep": 64})
    world, backbone = make_world(whole=True), build(config).eval()
    offsets_U1, rows = world.history.offsets_U1.tolist(), world.history.rows
    generator = torch.Generator().manual_seed(3)
    order_T = torch.cat(
        [
            first + torch.randperm(last - first, generator=generator)
            for first, last in pairwise(offsets_U1)
        ]
    )
    moved = replace(
        rows,
        item_T=rows.item_T[order_T],
        code_TG=rows.code_TG[order_T],
        time_T=rows.time_T[order_T],
    )
    shuffled = replace(world, history=replace(world.history, rows=moved))
    close(attend(backbone, shuffled).vector_CW, attend(backbone, world).vector_CW)


@EVERY_LIFELONG
def test_only_rows_of_the_span_are_ever_selected(name):
    world, backbone = make_world(), build(VARIANTS[name]).eval()
    # All inner products negative: an empty slot must not beat a real row.
    for sign in (1.0, -1.0):
        vector_ID = sign * world.history.rows.vector_ID.abs()
        query = replace(world.query, vector_CD=world.query.vector_CD.abs())
        signed = replace(world.with_vectors(vector_ID), query=query)
        interest = attend(backbone, signed, levels=True)
        inside_CT = rows_in_span(signed)
        for level in interest.levels:
            for c, kept_K in enumerate(level.kept_CK):
                real = kept_K[kept_K >= 0].tolist()
                assert len(real) == len(set(real))
                assert all(inside_CT[c, row] for row in real)
                assert (level.weight_CK[c][kept_K < 0] == 0).all()
        if VARIANTS[name].name != "sim_hard":
            _all_slots_used(interest.levels, signed)


def _all_slots_used(levels, world):
    length_C = world.span_C2[:, 1] - world.span_C2[:, 0]
    seen_C = length_C
    for level in levels:
        kept_C = (level.kept_CK >= 0).sum(1)
        # Only rows that collide at all are kept, however few they are.
        if level.name != "collisions":
            assert torch.equal(kept_C, seen_C.clamp(max=level.kept_CK.shape[1]))
        seen_C = kept_C


@EVERY_LIFELONG
def test_rows_outside_the_span_change_nothing(name):
    world, backbone = make_world(per_user=1), build(VARIANTS[name]).eval()
    inside_T = rows_in_span(world).any(0)
    assert not inside_T.all()
    vector_ID = world.history.rows.vector_ID.clone()
    vector_ID[world.history.rows.item_T[~inside_T].long()] = 1e6
    changed = attend(backbone, world.with_vectors(vector_ID)).vector_CW
    assert torch.equal(changed, attend(backbone, world).vector_CW)


@EVERY
@pytest.mark.parametrize("lengths", [(0, 0), (1, 2), (0, 1, 40)], ids=str)
def test_short_and_empty_histories(name, lengths):
    world, backbone = make_world(lengths, whole=True), build(VARIANTS[name])
    vector_ID = world.history.rows.vector_ID.clone().requires_grad_()
    world = world.with_vectors(vector_ID)
    interest = attend(backbone, world, levels=True)
    empty_C = world.span_C2[:, 0] == world.span_C2[:, 1]
    assert torch.isfinite(interest.vector_CW).all()
    assert (interest.vector_CW[empty_C] == 0).all()
    loss = interest.vector_CW.square().sum() + vector_ID.sum() * 0
    if interest.auxiliary_logit_C is not None:
        assert torch.isfinite(interest.auxiliary_logit_C).all()
        loss = loss + interest.auxiliary_logit_C.square().sum()
    if backbone.width:
        loss.backward()
        assert torch.isfinite(vector_ID.grad).all()
        assert all(
            torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None
        )


ALL_ROWS = ("full", "lap")
"""Backbones whose interest reaches every row of the span (LAP: through the complete scope)."""


@EVERY_LIFELONG
def test_gradient_reaches_the_rows_that_the_paper_says(name):
    world, backbone = make_world(per_user=1), build(VARIANTS[name])
    vector_ID = world.history.rows.vector_ID.clone().requires_grad_()
    world = world.with_vectors(vector_ID)
    interest = attend(backbone, world)
    reached_T = row_gradient(world, vector_ID, interest.vector_CW.square().sum())
    config, inside_T = VARIANTS[name], rows_in_span(world).any(0)
    if config.name in ALL_ROWS and name != "lap-apart":
        assert torch.equal(reached_T, inside_T)
    elif config.name == "sdim" and config.final == "sums":
        assert torch.equal(reached_T, _colliding(backbone, world))
    elif name == "twin-per-head":
        assert (reached_T & ~inside_T).sum() == 0 and 0 < reached_T.sum() < inside_T.sum()
    else:
        assert torch.equal(reached_T, kept_by_last_level(backbone, world).any(0))
        assert reached_T.sum() < inside_T.sum()
    if interest.auxiliary_logit_C is not None:
        searched_T = row_gradient(world, vector_ID, interest.auxiliary_logit_C.square().sum())
        assert torch.equal(searched_T, inside_T)


def _colliding(backbone, world):
    from lcn.ops.simhash import bucket_codes

    rows = world.history.rows
    code_TG = bucket_codes(rows.vector_ID.detach(), backbone.plane_DGP)[rows.item_T.long()]
    query_CG = bucket_codes(world.query.vector_CD, backbone.plane_DGP)
    hit_CT = (code_TG[None] == query_CG[:, None]).any(-1)
    return (hit_CT & rows_in_span(world)).any(0)


UNTRAINED = {
    # Without integration nothing that has a gradient reads the median scope's scores.
    "lap-apart": ("msa.",),
    "twin-stale": ("snapshot.",),
}


@EVERY_LIFELONG
def test_every_parameter_learns_but_those_declared(name):
    world, backbone = make_world(), build(VARIANTS[name])
    vector_ID = world.history.rows.vector_ID.clone().requires_grad_()
    interest = attend(backbone, world.with_vectors(vector_ID))
    loss = interest.vector_CW.square().sum()
    if interest.auxiliary_logit_C is not None:
        loss = loss + interest.auxiliary_logit_C.square().sum()
    loss.backward()
    spared = UNTRAINED.get(name, ())
    for parameter_name, parameter in backbone.named_parameters():
        moved = parameter.grad is not None and bool((parameter.grad != 0).any())
        if not parameter.numel():
            continue
        assert moved != parameter_name.startswith(spared or ("-",)), parameter_name
    assert all(not buffer.requires_grad for buffer in backbone.buffers())


@EVERY
def test_saved_weights_give_the_same_answer(name, tmp_path):
    world, backbone = make_world(), build(VARIANTS[name], seed=1)
    attend(backbone, world)
    save_weights(tmp_path / "w.safetensors", backbone)
    other = build(VARIANTS[name], seed=2)
    load_weights(tmp_path / "w.safetensors", other)
    before, after = (attend(each.eval(), world).vector_CW for each in (backbone, other))
    assert torch.equal(before, after)


@EVERY_LIFELONG
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "parts"])
@torch.no_grad()
def test_one_state_serves_many_requests(name, whole):
    """Serving: encode a user once, attend to any candidates; the same as all in one batch."""
    world, backbone = make_world((0, 30), per_user=12, whole=whole), build(VARIANTS[name]).eval()
    together = attend(backbone, world)
    state = backbone.encode(world.history)
    rows = world.history.rows
    first = int(world.history.offsets_U1[1])
    alone = replace(
        rows,
        item_T=rows.item_T[first:],
        code_TG=rows.code_TG[first:],
        time_T=rows.time_T[first:],
    )
    served = backbone.encode(
        replace(world.history, rows=alone, offsets_U1=world.history.offsets_U1[1:] - first)
    )
    for c in range(12, 24, 5):
        part = world.of(torch.arange(c, 24))
        expected = together.vector_CW[c:]
        close(backbone.attend(state, part.query, part.span_C2).vector_CW, expected)
        close(backbone.attend(served, part.query, part.span_C2 - first).vector_CW, expected)


@EVERY_LIFELONG
@torch.no_grad()
def test_preceding_stages_deliver_what_is_asked_for(name):
    """Unique rows of the span, as many as there are; a longer list begins with the shorter."""
    world, backbone = make_world(), build(VARIANTS[name]).eval()
    state = backbone.encode(world.history)
    few_CK = backbone.preceding(state, world.query, world.span_C2, 3)
    many_CK = backbone.preceding(state, world.query, world.span_C2, 60)
    assert few_CK.shape == (len(world.span_C2), 3)
    assert many_CK.shape == (len(world.span_C2), 60)
    assert torch.equal(many_CK[:, :3], few_CK)
    inside_CT, limit = rows_in_span(world), 60
    config = VARIANTS[name]
    if config.name == "lap" and config.use_msa and config.use_fsa and config.k1:
        limit = config.k1
    for c, kept_K in enumerate(many_CK):
        real = kept_K[kept_K >= 0].tolist()
        assert len(real) == len(set(real)) == min(int(inside_CT[c].sum()), limit)
        assert all(inside_CT[c, row] for row in real)


@EVERY_LIFELONG
def test_a_backbone_works_without_event_context(name):
    from lcn.backbones import build_backbone

    if getattr(VARIANTS[name], "context_fields", None):
        pytest.skip("asks for a context field by name")
    if getattr(VARIANTS[name], "fism", False) and not VARIANTS[name].recency:
        pytest.skip("weighs events by nothing but their context, and is refused without")
    world = make_world()
    bare = replace(world, history=replace(world.history, rows=world.history.rows.without_context()))
    backbone = build_backbone(VARIANTS[name], replace(FEATURES, event_context=()))
    assert torch.isfinite(attend(backbone, bare).vector_CW).all()
