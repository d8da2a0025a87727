"""DSS, BERT4Rec, CL4SRec and CLRec against their equations, and their rules one by one."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_bench import (
    History,
    assert_same,
    build,
    loss_of,
    make_batch,
    make_model,
    make_view,
    ordinary,
    rng,
    view_and_stream,
)

from lcn.errors import ConfigError
from lcn.objectives.augment import augment, crop_places, reorder_places, split_domains
from lcn.objectives.bert4rec import draw_mask
from lcn.objectives.cl4srec import nt_xent
from lcn.objectives.clrec import draw_cuts
from lcn.objectives.dss import sequence_to_item, sequence_to_sequence, split_streams
from lcn.objectives.stream import StreamConfig, merge_stream

# DSS


def test_19_one_intent_is_attention_pooling(toy):
    view, stream = view_and_stream(toy, ordinary())
    objective = build("dss", toy, intents=1).double()
    z = objective.encoder.encoder(view.item_ID, stream)
    assert torch.equal(objective.encoder.intents(z), torch.ones_like(z[..., :1]))
    places = objective.encoder.places(z, stream)
    assert torch.allclose(places.sum(1), torch.ones(len(stream), dtype=torch.float64))
    assert places[~stream.real_UL].abs().sum() == 0
    pooled = objective.encoder(view.item_ID, stream, label_side=False)[:, 0]
    norm, side = objective.encoder.norms[4], objective.encoder.side_2KD[0, 0]
    assert torch.allclose(pooled, norm(side + (places[..., None] * z).sum(1)))


def test_19_padding_is_masked(toy):
    view, stream = view_and_stream(toy, ordinary())
    objective = build("dss", toy).double()
    row = torch.tensor([1])
    alone = stream.of_users(row)
    short = alone.take(torch.arange(int(alone.length_U[0]))[None])
    assert short.item_UL.shape[1] < stream.item_UL.shape[1]
    wide = objective.encoder(view.item_ID, stream, label_side=True)[1]
    assert torch.allclose(objective.encoder(view.item_ID, short, label_side=True)[0], wide)


def test_dss_terms_equal_loops():
    given_side, rest = (
        torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    item = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    key, target = torch.tensor([7, 8, 7, 9]), torch.tensor([True, True, True, False])
    losses = []
    for b in range(3):  # User 3 is the only one of its domain and does not count.
        pool = [c for c in range(4) if c == b or (target[c] == target[b] and key[c] != key[b])]
        score = {(c, k): given_side[b, k] @ item[c] / 5**0.5 for c in pool for k in range(3)}
        best = torch.stack([score[b, k] for k in range(3)]).max()
        losses.append(torch.logsumexp(torch.stack(list(score.values())), 0) - best)
    fast = sequence_to_item(given_side, item, key, target)
    assert_same(fast, torch.stack(losses).mean(), given_side, item)
    terms = []
    for b, k in itertools.product(range(4), range(3)):
        scores = torch.stack(
            [given_side[b, k] @ rest[c, j] / 5**0.5 for c in range(4) for j in range(3)]
        )
        terms.append(torch.logsumexp(scores, 0) - given_side[b, k] @ rest[b, k] / 5**0.5)
    kept = torch.stack(terms).sort().values[:6].mean()
    assert_same(sequence_to_sequence(given_side, rest, 0.5), kept, given_side, rest)


def test_dss_splits(toy):
    _, stream = view_and_stream(toy, [*ordinary(), History(target=[(1, 44)])])
    by_time = split_streams(stream, 0.0, rng())
    by_domain = split_streams(stream, 1.0, rng())
    long = stream.of_users(stream.length_U >= 2)
    assert len(by_time.given) == len(long) == len(stream) - 1
    for row in range(len(long)):
        whole = long.item_UL[row][long.real_UL[row]].tolist()
        given_side, rest = (
            side.item_UL[row][side.real_UL[row]].tolist() for side in (by_time.given, by_time.rest)
        )
        assert given_side and given_side + rest[::-1] == whole
        assert by_time.label_B[row] == rest[-1]
    assert (by_domain.label_B == -1).all()
    flags = by_domain.given.target_UL[:, 0]
    assert flags.any() and not flags.all()
    for side, flag in ((by_domain.given, flags), (by_domain.rest, ~flags)):
        assert torch.equal(side.target_UL, side.real_UL & flag[:, None])


# BERT4Rec


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.2, 0.6, 1.0]))
def test_20_at_least_one_masked_place_per_domain(toy, seed, share):
    users = [*ordinary(seed=seed), History(target=[(1, 41)]), History(source=[(1, 4), (2, 5)])]
    _, stream = view_and_stream(toy, users)
    masked = draw_mask(stream, share, rng(seed))
    assert not (masked & ~stream.real_UL).any()
    for target in (True, False):
        own = stream.of_domain(target=target)
        assert torch.equal((masked & own).any(1), own.any(1))
    count = (share * stream.length_U + 0.5).long()
    both = stream.of_domain(target=True).any(1) & stream.of_domain(target=False).any(1)
    assert (masked.sum(1) >= count).all() and (masked.sum(1) <= count + 1 + both).all()


def test_20_unmasked_places_send_no_gradient(toy, monkeypatch):
    """The loss reads hidden states of masked places, and those do not see their own item."""
    seen = {}
    objective = build("bert4rec", toy, newest_share=1.0)
    encode = objective.encoder.forward

    def spy(item_ID, stream, masked_UL):
        seen["hidden"], seen["masked"] = encode(item_ID, stream, masked_UL), masked_UL
        seen["stream"] = stream
        seen["hidden"].retain_grad()
        return seen["hidden"]

    monkeypatch.setattr(objective.encoder, "forward", spy)
    loss_of(objective, make_model(toy), make_batch(toy, ordinary())).backward()
    moved = seen["hidden"].grad.abs().sum(-1) > 0
    assert torch.equal(moved, seen["masked"])
    # Half of the rows are copies with only the newest event masked.
    copies = seen["masked"][8:]
    assert (copies.sum(1) == 1).all()
    assert torch.equal(copies.int().argmax(1), seen["stream"].length_U[8:] - 1)


def test_20_masked_item_is_hidden_from_the_encoder(toy):
    users = [History(target=[(1, 41), (3, 42)], source=[(2, 5), (4, 6)])]
    view, stream = view_and_stream(toy, users)
    objective = build("bert4rec", toy).double()
    masked = torch.tensor([[False, False, True, False]])
    item = view.item_ID.detach().requires_grad_()
    hidden = objective.encoder(item, stream, masked)
    gradient = torch.autograd.grad((hidden * torch.randn_like(hidden)).sum(), item)[0]
    reached = gradient[stream.item_UL[0]].abs().sum(1) > 0
    assert reached.tolist() == [True, True, False, True]


# CL4SRec


def test_nt_xent_equals_loops():
    a, b = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    views = [*a.unbind(), *b.unbind()]
    cosine = torch.nn.functional.cosine_similarity
    losses = []
    for i in range(8):
        score = [cosine(views[i], views[j], dim=0) / 0.2 for j in range(8)]
        others = torch.stack([score[j] for j in range(8) if j != i])
        losses.append(torch.logsumexp(others, 0) - score[(i + 4) % 8])
    assert_same(nt_xent(a, b, 0.2), torch.stack(losses).mean(), a, b)


def test_18_identical_views_and_infinite_temperature(toy):
    h = torch.eye(4, dtype=torch.float64)[:3]
    # Each view agrees with its partner (similarity 1) and with no other.
    assert nt_xent(h, h, 1.0).item() == pytest.approx(math.log(1 + 4 / math.e))
    x, y = torch.randn(5, 3, generator=rng()), torch.randn(5, 3, generator=rng(1))
    assert nt_xent(x, y, 1e9).item() == pytest.approx(math.log(2 * 5 - 1), abs=1e-6)
    users = [History(source=[(1, u + 1)]) for u in range(3)]
    view, stream = view_and_stream(toy, users)
    objective = build("cl4srec", toy).double()
    for seed in range(4):
        # A stream of one event: crop and reorder leave it, a third of one is no event to mask.
        one, two = (
            objective._encode(view, augment(stream, 0.6, 0.3, 0.5, rng(seed + n))) for n in (0, 9)
        )
        assert torch.allclose(one, two)


def test_augmentations_keep_their_promises(toy):
    _, stream = view_and_stream(toy, ordinary(users=40))
    length = stream.length_U
    for seed in range(5):
        crop = stream.take(crop_places(stream, 0.6, rng(seed)))
        for target in (True, False):
            had = stream.of_domain(target=target).any(1)
            assert torch.equal(crop.of_domain(target=target).any(1), had)
        short = crop.length_U < length
        assert (crop.length_U[short] == (0.6 * length[short]).long().clamp(min=1)).all()
        assert short.float().mean() > 0.5
        for row in range(len(stream)):
            kept = crop.row_UL[row][crop.real_UL[row]].tolist()
            whole = stream.row_UL[row].tolist()
            assert kept in [whole[s : s + len(kept)] for s in range(len(whole))]
        shuffled = stream.take(reorder_places(stream, 0.5, rng(seed)))
        moved = (shuffled.row_UL != stream.row_UL) | (shuffled.target_UL != stream.target_UL)
        for row in range(len(stream)):
            places = moved[row].nonzero()[:, 0].tolist()
            if places:
                assert places[-1] - places[0] < int(0.5 * length[row])
        assert torch.equal(shuffled.item_UL.sort(1).values, stream.item_UL.sort(1).values)
        assert moved.any()
        masked = augment(stream, 0.6, 0.3, 0.5, rng(seed)).masked_UL
        hidden = masked.any(1)
        assert (masked.sum(1)[hidden] == (0.3 * length[hidden]).long()).all()
        assert not (masked & ~stream.real_UL).any()
        assert 0.1 < hidden.float().mean() < 0.6
    target, source = split_domains(stream)
    assert target.stream.target_UL[target.stream.real_UL].all()
    assert not source.stream.target_UL.any()
    assert torch.equal(target.stream.length_U + source.stream.length_U, length)


def test_cl4srec_views_by_domain(toy):
    """Users of one domain take no part in the contrast; without any user it is the next item."""
    model = make_model(toy)
    one_sided = [History(target=[(1, 41), (2, 42)]), History(source=[(1, 2), (3, 4)])]
    objective = build("cl4srec", toy, views="domains", next_weight=0.0)
    assert loss_of(objective, model, make_batch(toy, one_sided)).item() == 0
    assert loss_of(objective, model, make_batch(toy, ordinary())).item() > 0


# CLRec


def test_cl4srec_views_by_domain_need_both(toy):
    with pytest.raises(ConfigError, match=r"stream\.domains: target"):
        build("cl4srec", toy, views="domains", stream={"domains": "target"})


def test_22_queue_holds_the_batchs_positives_in_order(toy):
    model = make_model(toy)
    users = [History(target=[(t, 41 + 4 * u + t) for t in range(4)]) for u in range(3)]
    objective = build("clrec", toy, queue=5)
    view = make_view(model, make_batch(toy, users))
    assert objective(view).item() == 0
    # Three events before the cut leave the fourth as the only positive.
    assert objective.queue_2Q.tolist() == [[-1] * 5, [-1, -1, 44, 48, 52]]
    assert objective(make_view(model, make_batch(toy, users))).item() > 0
    assert objective.queue_2Q[1].tolist() == [48, 52, 44, 48, 52]
    assert "queue_2Q" in objective.state_dict()


def test_22_the_positive_is_never_its_own_negative(toy):
    model = make_model(toy)
    users = [History(target=[(t, 41 + t) for t in range(4)])] * 3
    objective = build("clrec", toy)
    for _ in range(3):
        # Every user's positive is item 44 and so is the whole queue: nothing to contrast.
        assert loss_of(objective, model, make_batch(toy, users)).item() == 0
    assert (objective.queue_2Q[1] == 44).sum() == 9


def test_22_loss_equals_loops_and_repetitions_count(toy):
    model = make_model(toy).double()
    users = [History(target=[(t, 41 + 4 * u + t) for t in range(4)]) for u in range(3)]
    objective = build("clrec", toy, temperature=0.5).double()
    objective.queue_2Q[1, -4:] = torch.tensor([70, 70, 44, 61])
    view = make_view(model, make_batch(toy, users))
    stream = merge_stream(view.batch, view.latest_candidates(), StreamConfig(length=8), rng())
    hidden = objective.encoder(view.item_ID, stream)[:, 2]
    fields = torch.from_numpy(np.array(toy.item_IF)).long()
    item = model.item(fields)
    cosine = torch.nn.functional.cosine_similarity
    losses = []
    for u, positive in enumerate((44, 48, 52)):
        score = {a: cosine(hidden[u], item[a], dim=0) / 0.5 for a in (positive, 70, 61, 44)}
        pool = [a for a in (70, 70, 44, 61) if a != positive]
        everything = torch.stack([score[a] for a in (positive, *pool)])
        losses.append(torch.logsumexp(everything, 0) - score[positive])
    weight = model.item.embed.tables[0].weight
    assert_same(objective(view), torch.stack(losses).mean(), weight)


def test_clrec_cuts_leave_a_label_behind():
    label = torch.tensor([[0, 0, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()
    seen = set()
    for seed in range(60):
        user, cut, place = draw_cuts(label, 3, rng(seed))
        assert user.tolist() == [0, 2]
        seen |= set(zip(user.tolist(), cut.tolist(), place.tolist(), strict=True))
    first = {(0, 3, 3), (0, 4, 5), (0, 5, 5)}
    assert seen == first | {(2, 3, 5), (2, 4, 5), (2, 5, 5)}


def test_clrec_does_not_push_in_evaluation(toy):
    objective = build("clrec", toy).eval()
    loss_of(objective, make_model(toy), make_batch(toy, ordinary()))
    assert (objective.queue_2Q == -1).all()
