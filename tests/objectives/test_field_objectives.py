"""CL4CTR, SSL and AT4CTR against their equations, and their rules one by one."""

import itertools
import math

import numpy as np
import pytest
import torch
from objective_bench import (
    History,
    assert_same,
    build,
    loss_of,
    make_batch,
    make_model,
    make_setup,
    make_view,
    ordinary,
    rng,
    small_config,
    view_and_stream,
)

from lcn.data.corpus import DomainItems, ItemCorpus
from lcn.errors import ConfigError
from lcn.objectives import Setup
from lcn.objectives.at4ctr import matched_candidates
from lcn.objectives.cl4ctr import alignment, draw_kept, sample_fields, uniformity
from lcn.objectives.encoder import last_place
from lcn.objectives.ssl_features import (
    correlated_mask,
    field_information,
    random_mask,
    rank_partners,
)
from lcn.objectives.stream import StreamConfig, merge_stream

# CL4CTR


def test_17_alignment_closed_form_equals_brute_force():
    x = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True, generator=rng())
    present = torch.tensor([[True, True, i in (2, 4, 5)] for i in range(7)])
    fields = []
    for f in range(3):
        rows = [i for i in range(7) if present[i, f]]
        pairs = [(x[a, f] - x[b, f]).square().sum() for a, b in itertools.combinations(rows, 2)]
        fields.append(torch.stack(pairs).mean())
    assert_same(alignment(x, present), torch.stack(fields).mean(), x)
    nothing = alignment(x, torch.zeros_like(present))
    assert nothing.item() == 0


def test_17_uniformity_closed_form_equals_brute_force():
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True, generator=rng())
    cosine = torch.nn.functional.cosine_similarity
    terms = [
        cosine(x[a, f], x[b, g], dim=0)
        for a, b in itertools.product(range(5), repeat=2)
        for f, g in itertools.permutations(range(3), 2)
    ]
    assert_same(uniformity(x), torch.stack(terms).mean(), x)


def test_cl4ctr_contrasts_a_sample_with_itself(toy):
    """Without dropping and with equal projections both views are one; samples never mix."""
    objective = build("cl4ctr", toy, drop=0.0, regularise=0.0)
    objective.project[1].load_state_dict(objective.project[0].state_dict())
    model, batch = make_model(toy), make_batch(toy, ordinary())
    assert loss_of(objective, model, batch).item() == 0
    x = torch.randn(6, objective.project[0].in_features // 16, 16, requires_grad=True)
    out = objective.project[0](objective.interact(x).flatten(1))
    gradient = torch.autograd.grad(out[2].sum(), x)[0]
    assert gradient[2].abs().sum() > 0
    assert gradient[[0, 1, 3, 4, 5]].abs().sum() == 0


@pytest.mark.parametrize(("masking", "axis"), [("random", None), ("field", 2), ("dimension", 1)])
def test_cl4ctr_maskings(masking, axis):
    x = torch.ones(200, 5, 8)
    kept = draw_kept(x, masking, 0.25, rng()).expand_as(x)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.04)
    if axis is not None:
        assert (kept == kept.narrow(axis, 0, 1)).all()


def test_cl4ctr_fields_of_a_sample(toy):
    model = make_model(toy)
    users = [History([(1, 41), (2, 43)], [(1, 5)]), History()]
    view = make_view(model, make_batch(toy, users))
    field_CFE, present_CF = sample_fields(view)
    assert present_CF.tolist() == [[True] * 8, [True] * 4 + [False] * 4]
    vector = dict(zip(view.batch.address_I.tolist(), view.item_ID, strict=True))
    assert torch.allclose(field_CFE[0, 4], (vector[41] + vector[43]) / 2)
    assert torch.allclose(field_CFE[0, 6], vector[5]) and torch.allclose(field_CFE[0, 7], vector[5])
    assert field_CFE[1, 4:].abs().sum() == 0


def test_cl4ctr_needs_one_width(toy):
    setup = Setup(toy, item_width=16, field_width=8, batch_size=4)
    with pytest.raises(ConfigError, match="make them equal"):
        type(build("cl4ctr", toy))(small_config("cl4ctr"), setup)


# SSL


@pytest.mark.parametrize("fields", range(2, 9))
def test_23_views_split_all_fields(fields):
    partners = rank_partners(np.random.default_rng(0).random((fields, fields)))
    for seed in range(20):
        for masked in (random_mask(fields, rng(seed)), correlated_mask(partners, rng(seed))):
            assert 1 <= masked.sum() < fields
    halves = torch.stack([random_mask(fields, rng(seed)) for seed in range(200)])
    assert (halves.sum(1) == max(fields // 2, 1)).all()
    assert halves.any(0).all()


def test_23_correlated_mask_contains_its_seed():
    """Fields 0 and 3, and 1 and 2, know each other: a mask is a field and its best partners."""
    information = np.array([[9, 0, 1, 5], [0, 9, 5, 1], [1, 5, 9, 0], [5, 1, 0, 9]], float)
    partners = rank_partners(information)
    assert partners.tolist() == [[3, 2, 1], [2, 3, 0], [1, 0, 3], [0, 1, 2]]
    expected = {frozenset({s, *partners[s, :2].tolist()}) for s in range(4)}
    masks = {
        frozenset(correlated_mask(partners, rng(seed)).nonzero()[:, 0].tolist())
        for seed in range(60)
    }
    assert masks == expected


def test_23_views_read_disjoint_fields(toy, monkeypatch):
    objective = build("ssl", toy, masking="rfm")
    seen = []
    monkeypatch.setattr(objective.tower, "forward", lambda x: seen.append(x) or x[:, :16])
    loss_of(objective, make_model(toy), make_batch(toy, ordinary()))
    for a, b in zip(seen[::2], seen[1::2], strict=True):
        used = [x.unflatten(1, (2, 16)).abs().sum((0, 2)) > 0 for x in (a, b)]
        assert torch.equal(used[0], ~used[1])


def test_field_information_of_a_tiny_corpus():
    """x and y are the same coin (log 2 nats), z is independent of both."""
    item_IF = np.array([[0, 0, 0], [2, 5, 2], [2, 5, 3], [3, 9, 2], [3, 9, 3]], np.int32)
    items = DomainItems(torch.arange(1, 5), torch.ones(5, dtype=torch.int64))
    information = field_information(ItemCorpus(item_IF, {"source": items, "target": items}))
    assert information[0, 1] == pytest.approx(math.log(2))
    assert information[0, 2] == pytest.approx(0) and information[1, 2] == pytest.approx(0)


def test_ssl_needs_two_item_fields(toy):
    manifest = toy.manifest.model_copy(update={"item_fields": toy.manifest.item_fields[:1]})
    setup = make_setup(
        type(toy)(toy.folder, manifest, toy.item_IF, toy.user_UP, toy.events, toy.samples)
    )
    with pytest.raises(ConfigError, match="map more item fields"):
        type(build("ssl", toy))(small_config("ssl"), setup)


# AT4CTR


def test_at4ctr_matches_the_latest_click(toy):
    users = [
        History(target=[(1, 41)], labels=(1.0, 1.0, 0.0)),
        History(target=[(1, 42)], labels=(0.0, 0.0)),
        History(target=[(1, 43)], labels=(1.0,)),
    ]
    view = make_view(make_model(toy), make_batch(toy, users))
    assert matched_candidates(view).tolist() == [1, 4, 5]


def test_at4ctr_stream_ends_before_its_click(toy):
    """Events between the click and a later impression of the batch are not read by L_UIM."""
    model = make_model(toy)
    users = [
        History([(1, 41), (2, 42), (9, 50)], [(3, 4)], labels=(1.0, 0.0)),
        History([(1, 43), (2, 44)], labels=(1.0,)),
    ]
    objective = build("at4ctr", toy, next_weight=0.0).eval()

    def loss(newest, cut):
        users[0].target[-1] = (9, newest)
        batch = make_batch(toy, users)
        # The first candidate of user 0 stands before its event at time 9.
        batch.short_target_C2[0, 1] -= cut
        place = batch.address_I.tolist().index
        batch.candidate_C[:] = torch.tensor([place(41), place(41), place(43)])
        return loss_of(objective, model, batch).item()

    assert loss(50, cut=1) == pytest.approx(loss(60, cut=1), rel=1e-6)
    assert loss(50, cut=0) != pytest.approx(loss(60, cut=0), rel=1e-3)


def test_at4ctr_matches_every_user_however_few_predict(toy, monkeypatch):
    objective = build("at4ctr", toy, stream={"users": 2}).eval()
    seen = []
    match = objective._match
    monkeypatch.setattr(
        objective,
        "_match",
        lambda view, stream, *rest: (seen.append(len(stream)), match(view, stream, *rest))[1],
    )
    batch = make_batch(toy, ordinary(users=7))
    loss_of(objective, make_model(toy), batch)
    assert seen == [7]


def test_at4ctr_match_equals_loops(toy):
    """Positives only; negatives are other users' clicked candidates and remembered ones."""
    model = make_model(toy).double()
    users = [
        History([(1, 41 + u), (2, 60 + u)], [(3, u + 1)], labels=(float(u != 1),)) for u in range(4)
    ]
    batch = make_batch(toy, users)
    batch.candidate_C[:] = torch.tensor([0, 1, 2, 3])
    objective = build("at4ctr", toy, next_weight=0.0, temperature=0.4).double()
    remembered = torch.nn.functional.normalize(torch.randn(2, 64, dtype=torch.float64))
    objective.memory_MW[-2:], objective.memory_user_M[-2:] = remembered, torch.tensor([9, 3])
    view = make_view(model, batch)
    stream = merge_stream(batch, view.latest_candidates(), StreamConfig(length=8), rng())
    hidden = objective.encoder(view.item_ID, stream).mean(1)
    profile = model.profile(batch.profile_UP.long())
    u = objective.user_tower(torch.cat([profile, hidden], 1))
    own = model.candidate(batch.candidate_CA.long())
    v = objective.item_tower(torch.cat([view.item_ID[batch.candidate_C], own], 1))
    cosine = torch.nn.functional.cosine_similarity
    losses = []
    for p in (0, 2, 3):
        pool = [v[q] for q in (0, 2, 3) if q != p] + [remembered[0]]
        # The second remembered sample is of user 3, who stands at place 2 of the batch.
        pool += [remembered[1]] if p != 2 else []
        score = [cosine(u[p], each, dim=0) / 0.4 for each in (v[p], *pool)]
        losses.append(torch.logsumexp(torch.stack(score), 0) - score[0])
    assert_same(objective(view), torch.stack(losses).mean(), *objective.user_tower.parameters())
    assert objective.memory_user_M[-3:].tolist() == [1, 3, 4]


def test_last_place_reads_the_newest(toy):
    _, stream = view_and_stream(toy, ordinary())
    place = torch.arange(stream.item_UL.shape[1], dtype=torch.float64).expand(len(stream), -1)
    assert torch.equal(last_place(place[..., None], stream)[:, 0], stream.length_U - 1.0)
