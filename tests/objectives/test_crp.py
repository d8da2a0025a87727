"""CRP against its equations, written out as loops."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_bench import (
    SOURCE,
    TARGET,
    History,
    build,
    item_gradient,
    loss_of,
    make_batch,
    make_model,
    make_view,
    ordinary,
)
from pydantic import ValidationError

from lcn.errors import ConfigError
from lcn.objectives.contrast import unit
from lcn.objectives.crp import LikedConfig, Pairs, draw_negatives, draw_pairs

TAU = 0.3


def _cos(a, b):
    return float(a @ b) / (float(a.norm()) * float(b.norm()))


def _pad(rows, width=6):
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


def _twin(item, first, second, key, form):
    """Eq. of the anchored forms over positive pairs (first[i], second[i]), one per user."""
    losses = []
    for i in range(len(first)):
        positive = _cos(item[first[i]], item[second[i]]) / TAU
        total = 0.0
        for j in range(len(first)):
            own = key[second[j]] in (key[first[i]], key[second[i]])
            if j != i and not own:
                total += math.exp(_cos(item[first[i]], item[second[j]]) / TAU)
        if total:
            total += math.exp(positive) if form == "infonce" else 0.0
            losses.append(math.log(total) - positive)
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("form", ["anchored", "infonce"])
def test_anchored_forms_equal_their_twin(toy, form, monkeypatch):
    model = make_model(toy).double()
    view = make_view(model, make_batch(toy, ordinary()))
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(0, len(view.item_ID), (9,), generator=generator)
    second = torch.randint(0, len(view.item_ID), (9,), generator=generator)
    # Users 2 and 5 share the positive's item; user 7's second item is user 1's anchor.
    second[5], second[7] = second[2], first[1]
    pairs = Pairs(torch.cat([first, torch.tensor([-1])]), torch.cat([second, torch.tensor([3])]))
    monkeypatch.setattr("lcn.objectives.crp.draw_pairs", lambda *_: pairs)
    terms = {"weight_pt": 1.0, "weight_ps": 0.0, "weight_pc": 0.0}
    crp = build("crp", toy, form=form, temperature=TAU, pairs=1, **terms)
    key = list(range(len(view.item_ID)))
    expected = _twin(view.item_ID.detach(), first.tolist(), second.tolist(), key, form)
    assert crp(view).item() == pytest.approx(expected, rel=1e-9)


def test_13_paper_form_is_alignment_and_uniformity(toy, monkeypatch):
    """Value, scale invariance and a gradient that only turns vectors."""
    model = make_model(toy).double()
    view = make_view(model, make_batch(toy, ordinary()))
    item = view.item_ID.detach().clone().requires_grad_()
    pairs = Pairs(torch.tensor([0, 1, 2, -1]), torch.tensor([3, 4, 5, 6]))
    negatives = (torch.tensor([0, 7, 2, 9]), torch.tensor([8, 4, 3, 1]))
    monkeypatch.setattr("lcn.objectives.crp.draw_pairs", lambda *_: pairs)
    monkeypatch.setattr("lcn.objectives.crp.draw_negatives", lambda *_: negatives)
    terms = {"weight_pt": 0.0, "weight_ps": 0.0, "weight_pc": 2.0}
    crp = build("crp", toy, form="paper", temperature=TAU, pairs=1, **terms)

    def value(vectors):
        return crp(type(view)(view.batch, vectors, view.tables, view.generator, view.step))

    fixed = item.detach()
    positive = [_cos(fixed[a], fixed[b]) for a, b in ((0, 3), (1, 4), (2, 5))]
    negative = [_cos(fixed[a], fixed[b]) for a, b in zip(*negatives, strict=True)]
    expected = -sum(positive) / 3 / TAU + math.log(sum(math.exp(s / TAU) for s in negative))
    loss = value(item)
    assert loss.item() == pytest.approx(2 * expected, rel=1e-9)
    scale = torch.rand(len(item), 1, dtype=torch.float64) + 0.5
    assert value(item * scale).item() == pytest.approx(loss.item(), rel=1e-9)
    loss.backward()
    assert item.grad.abs().sum() > 0
    assert (item.grad * item).sum(1).abs().max() < 1e-9
    assert torch.autograd.gradcheck(value, item.detach().requires_grad_())


@pytest.mark.parametrize("form", ["paper", "anchored", "infonce"])
def test_13_no_valid_pair_is_zero(toy, form):
    model = make_model(toy)
    users = [History(target=[(1, 41), (2, 41)]), History(source=[(1, 2)]), History()]
    loss = loss_of(build("crp", toy, form=form), model, make_batch(toy, users))
    loss.backward()
    assert loss.item() == 0
    assert item_gradient(model, SOURCE + TARGET).abs().sum() == 0


def test_13_users_without_a_pair_contribute_nothing(toy):
    """A user with one target event is no positive of PT, and PT is the same without it."""
    model = make_model(toy)
    users = [History(target=[(t, 41 + u + 10 * t) for t in range(2)]) for u in range(4)]
    terms = {"weight_ps": 0.0, "weight_pc": 0.0}
    crp = build("crp", toy, form="infonce", **terms)
    batch = make_batch(toy, [*users, History(target=[(0, 80)])])
    loss_of(crp, model, batch).backward()
    assert item_gradient(model, [80]).abs().sum() == 0
    assert item_gradient(model, [41]).abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_14_negative_pairs_join_two_users(data):
    users = data.draw(st.integers(1, 6))
    lengths = st.lists(st.integers(0, 4), min_size=users, max_size=users)
    # The tens digit of an item names its user.
    first = _pad([[10 * u + p for p in range(n)] for u, n in enumerate(data.draw(lengths))])
    second = _pad([[10 * u + p for p in range(n)] for u, n in enumerate(data.draw(lengths))])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    a, b = draw_negatives(first, second, 50, generator)
    assert (a >= 0).all() and (b >= 0).all()
    assert (a // 10 != b // 10).all()
    owners = {
        (int(x), int(y)) for x in (first[first >= 0] // 10) for y in (second[second >= 0] // 10)
    }
    assert (len(a) > 0) == any(x != y for x, y in owners)


def test_14_negative_users_are_uniform():
    """Every ordered pair of two users equally often; user 3 has no second history."""
    first = _pad([[0], [10], [20], [30]])
    second = _pad([[0, 1], [10], [20], []])
    a, b = draw_negatives(first, second, 36_000, torch.Generator().manual_seed(0))
    count = torch.zeros(4, 4).index_put((a // 10, b // 10), torch.ones(len(a)), accumulate=True)
    expected = torch.tensor([[0, 1 / 2, 1 / 2, 0], [1 / 2, 0, 1 / 2, 0], [1 / 2, 1 / 2, 0, 0]])
    assert torch.allclose(count[:3] / count[:3].sum(1, keepdim=True), expected, atol=0.02)
    assert torch.allclose(count[3, :3] / count[3].sum(), torch.full((3,), 1 / 3), atol=0.02)
    assert count[:, 3].sum() == 0


def test_14_no_negative_is_the_anchors_own_item(toy):
    """Two users with the same pair of items: nothing is left to contrast, in either form."""
    model = make_model(toy)
    users = [History(target=[(1, 41), (2, 42)])] * 2
    for form in ("anchored", "infonce"):
        for seed in range(6):
            loss = loss_of(build("crp", toy, form=form), model, make_batch(toy, users), seed)
            assert loss.item() == 0


def test_15_one_negative_is_softplus(toy, monkeypatch):
    model = make_model(toy).double()
    view = make_view(model, make_batch(toy, ordinary()))
    pairs = Pairs(torch.tensor([0, 1]), torch.tensor([2, 3]))
    monkeypatch.setattr("lcn.objectives.crp.draw_pairs", lambda *_: pairs)
    terms = {"weight_pt": 1.0, "weight_ps": 0.0, "weight_pc": 0.0}
    loss = build("crp", toy, temperature=TAU, pairs=1, **terms)(view)
    e = view.item_ID.detach()
    gap = [(_cos(e[a], e[n]) - _cos(e[a], e[p])) / TAU for a, p, n in ((0, 2, 3), (1, 3, 2))]
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(g)) for g in gap) / 2, rel=1e-9)


def test_pairs_are_uniform_over_places_and_never_one_item(toy):
    """Item 41 stands at three of five places: first member 3/5, second never equal to it."""
    batch = make_batch(toy, [History(target=[(1, 41), (2, 41), (3, 41), (4, 50), (5, 60)])] * 4000)
    view = make_view(make_model(toy), batch)
    place = {int(a): i for i, a in enumerate(batch.address_I)}
    item_UL = batch.target.item_T.long().reshape(4000, 5)
    pairs = draw_pairs(item_UL, item_UL, view)
    assert pairs.valid_U.all()
    assert (pairs.first_U != pairs.second_U).all()
    first = pairs.first_U == place[41]
    assert first.float().mean().item() == pytest.approx(3 / 5, abs=0.03)
    second = pairs.second_U[pairs.first_U == place[50]] == place[41]
    assert second.float().mean().item() == pytest.approx(3 / 4, abs=0.05)


def test_more_pairs_of_a_user_are_so_many_draws(toy, monkeypatch):
    """Three pairs of each user: negatives are the other users' of the same draw."""
    model = make_model(toy).double()
    view = make_view(model, make_batch(toy, ordinary()))
    users, repeats = len(view.batch.address_U), 3
    generator = torch.Generator().manual_seed(2)
    size = (users * repeats,)
    first = torch.randint(0, len(view.item_ID), size, generator=generator)
    second = torch.randint(0, len(view.item_ID), size, generator=generator)
    drawn = []

    def draw(first_PL, second_PL, view):
        drawn.append((first_PL, second_PL))
        return Pairs(first, second)

    monkeypatch.setattr("lcn.objectives.crp.draw_pairs", draw)
    terms = {"weight_pt": 1.0, "weight_ps": 0.0, "weight_pc": 0.0}
    crp = build("crp", toy, temperature=TAU, pairs=repeats, **terms)
    unit_ID = torch.nn.functional.normalize(view.item_ID.detach(), dim=1)
    losses = []
    for p in range(len(first)):
        score = [float(unit_ID[first[p]] @ unit_ID[second[q]]) / TAU for q in range(len(first))]
        same = {first[p].item(), second[p].item()}
        others = [
            score[q]
            for q in range(len(first))
            if q // users == p // users and q != p and second[q].item() not in same
        ]
        losses.append(math.log(sum(map(math.exp, [score[p], *others]))) - score[p])
    assert crp(view).item() == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    first_PL, second_PL = drawn[0]
    assert first_PL is second_PL and len(first_PL) == users * repeats
    assert torch.equal(first_PL[:users], first_PL[users : 2 * users])


def test_only_liked_events_give_pairs(toy, tmp_path):
    """Events of another kind are as good as absent."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    model, batch = make_model(toy), make_batch(toy, ordinary())
    field = toy.manifest.event_context[0].name
    folder = tmp_path / "vocabulary" / "event"
    folder.mkdir(parents=True)
    table = {"value": ["no", "yes"], "index": [2, 3], "count": [1, 1]}
    pq.write_table(pa.table(table), folder / f"{field}.parquet")
    named = replace(toy, folder=tmp_path)
    liked = {"field": field, "values": ["yes"]}
    crp = build("crp", named, liked=liked)
    span_U2 = batch.short_target_C2[make_view(model, batch).latest_candidates()]
    shown_UL = build("crp", toy)._items(batch.target, span_U2)
    for codes, wanted_UL in ((2, torch.full_like(shown_UL, -1)), (3, shown_UL)):
        context_TG = torch.full_like(batch.target.context_TG, codes)
        rows = replace(batch.target, context_TG=context_TG)
        assert torch.equal(crp._items(rows, span_U2), wanted_UL)
    with pytest.raises(ConfigError, match=r"liked\.values: .* no value 'maybe'"):
        build("crp", named, liked={"field": field, "values": ["maybe"]})
    with pytest.raises(ConfigError, match=r"liked\.field: .* no event context field"):
        build("crp", named, liked={"field": "mood", "values": ["yes"]})


def test_warm_up_rises_linearly(toy):
    model, batch = make_model(toy), make_batch(toy, ordinary())
    crp = build("crp", toy, warmup=4)
    full = loss_of(crp, model, batch, step=100).item()
    rises = [loss_of(crp, model, batch, step=step).item() / full for step in range(6)]
    assert rises == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_an_item_is_no_negative_of_itself_in_the_paper_form(toy, monkeypatch):
    """Its cosine of 1 has no gradient and would rule the sum."""
    model = make_model(toy).double()
    view = make_view(model, make_batch(toy, ordinary()))
    pairs = Pairs(torch.tensor([0, 1]), torch.tensor([2, 3]))
    monkeypatch.setattr("lcn.objectives.crp.draw_pairs", lambda *_: pairs)
    terms = {"weight_pt": 1.0, "weight_ps": 0.0, "weight_pc": 0.0}
    crp = build("crp", toy, form="paper", temperature=TAU, pairs=1, **terms)
    losses = []
    for negatives in ([(4, 5), (6, 7)], [(4, 5), (8, 8), (6, 7)]):
        a, b = torch.tensor(negatives).unbind(1)
        monkeypatch.setattr("lcn.objectives.crp.draw_negatives", lambda *_, a=a, b=b: (a, b))
        losses.append(crp(view).item())
    assert losses[0] == losses[1]


def test_zero_vectors_have_no_direction_and_no_gradient():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    scaled = unit(x)
    assert torch.equal(scaled[0], torch.zeros(2))
    assert torch.allclose(scaled[1], torch.tensor([0.6, 0.8]))
    (scaled * torch.tensor([1.0, 2.0])).sum().backward()
    assert torch.equal(x.grad[0], torch.zeros(2)) and x.grad[1].abs().sum() > 0


@pytest.mark.parametrize("half", [{"field": "kind"}, {"values": ["yes"]}])
def test_half_a_statement_of_what_is_liked_is_refused(half):
    with pytest.raises(ValidationError, match="both field and values"):
        LikedConfig(**half)
