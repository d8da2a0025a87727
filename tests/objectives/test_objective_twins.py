"""Objectives against their equations, written out as loops, and their rules one by one."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_bench import (
    History,
    build,
    loss_of,
    make_batch,
    make_model,
    make_setup,
    make_view,
    ordinary,
    small_config,
)

from lcn.data.corpus import DomainItems, ItemCorpus
from lcn.errors import ConfigError
from lcn.objectives import Setup
from lcn.objectives.at4ctr import matched_candidates
from lcn.objectives.augment import augment, crop_places, reorder_places, split_domains
from lcn.objectives.bert4rec import draw_mask
from lcn.objectives.cl4ctr import alignment, draw_kept, sample_fields, uniformity
from lcn.objectives.cl4srec import nt_xent
from lcn.objectives.clrec import draw_cuts
from lcn.objectives.dss import sequence_to_item, sequence_to_sequence, split_streams
from lcn.objectives.encoder import last_place
from lcn.objectives.qlearning import RewardConfig, double_q_target, read_rewards
from lcn.objectives.sac import critic_weight
from lcn.objectives.ssl_features import (
    correlated_mask,
    field_information,
    random_mask,
    rank_partners,
)
from lcn.objectives.stream import StreamConfig, merge_stream


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _view_and_stream(toy, users, seed=0):
    view = make_view(make_model(toy).double(), make_batch(toy, users), seed)
    config = StreamConfig(length=8)
    stream = merge_stream(view.batch, view.latest_candidates(), config, view.generator)
    return view, stream


def _same(fast, slow, *inputs):
    """Values and the gradients of every input agree."""
    assert fast.item() == pytest.approx(slow.item(), rel=1e-9)
    gradients = (torch.autograd.grad(loss, inputs, retain_graph=True) for loss in (fast, slow))
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-10)


# CL4CTR


def test_17_alignment_closed_form_equals_brute_force():
    x = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True, generator=_rng())
    present = torch.tensor([[True, True, i in (2, 4, 5)] for i in range(7)])
    fields = []
    for f in range(3):
        rows = [i for i in range(7) if present[i, f]]
        pairs = [(x[a, f] - x[b, f]).square().sum() for a, b in itertools.combinations(rows, 2)]
        fields.append(torch.stack(pairs).mean())
    _same(alignment(x, present), torch.stack(fields).mean(), x)
    nothing = alignment(x, torch.zeros_like(present))
    assert nothing.item() == 0


def test_17_uniformity_closed_form_equals_brute_force():
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True, generator=_rng())
    cosine = torch.nn.functional.cosine_similarity
    terms = [
        cosine(x[a, f], x[b, g], dim=0)
        for a, b in itertools.product(range(5), repeat=2)
        for f, g in itertools.permutations(range(3), 2)
    ]
    _same(uniformity(x), torch.stack(terms).mean(), x)


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
    kept = draw_kept(x, masking, 0.25, _rng()).expand_as(x)
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
    _same(nt_xent(a, b, 0.2), torch.stack(losses).mean(), a, b)


def test_18_identical_views_and_infinite_temperature(toy):
    h = torch.eye(4, dtype=torch.float64)[:3]
    # Each view agrees with its partner (similarity 1) and with no other.
    assert nt_xent(h, h, 1.0).item() == pytest.approx(math.log(1 + 4 / math.e))
    x, y = torch.randn(5, 3, generator=_rng()), torch.randn(5, 3, generator=_rng(1))
    assert nt_xent(x, y, 1e9).item() == pytest.approx(math.log(2 * 5 - 1), abs=1e-6)
    users = [History(source=[(1, u + 1)]) for u in range(3)]
    view, stream = _view_and_stream(toy, users)
    objective = build("cl4srec", toy).double()
    for seed in range(4):
        # A stream of one event: crop and reorder leave it, a third of one is no event to mask.
        one, two = (
            objective._encode(view, augment(stream, 0.6, 0.3, 0.5, _rng(seed + n))) for n in (0, 9)
        )
        assert torch.allclose(one, two)


def test_augmentations_keep_their_promises(toy):
    _, stream = _view_and_stream(toy, ordinary(users=40))
    length = stream.length_U
    for seed in range(5):
        crop = stream.take(crop_places(stream, 0.6, _rng(seed)))
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
        shuffled = stream.take(reorder_places(stream, 0.5, _rng(seed)))
        moved = (shuffled.row_UL != stream.row_UL) | (shuffled.target_UL != stream.target_UL)
        for row in range(len(stream)):
            places = moved[row].nonzero()[:, 0].tolist()
            if places:
                assert places[-1] - places[0] < int(0.5 * length[row])
        assert torch.equal(shuffled.item_UL.sort(1).values, stream.item_UL.sort(1).values)
        assert moved.any()
        masked = augment(stream, 0.6, 0.3, 0.5, _rng(seed)).masked_UL
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


# DSS


def test_19_one_intent_is_attention_pooling(toy):
    view, stream = _view_and_stream(toy, ordinary())
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
    view, stream = _view_and_stream(toy, ordinary())
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
    _same(fast, torch.stack(losses).mean(), given_side, item)
    terms = []
    for b, k in itertools.product(range(4), range(3)):
        scores = torch.stack(
            [given_side[b, k] @ rest[c, j] / 5**0.5 for c in range(4) for j in range(3)]
        )
        terms.append(torch.logsumexp(scores, 0) - given_side[b, k] @ rest[b, k] / 5**0.5)
    kept = torch.stack(terms).sort().values[:6].mean()
    _same(sequence_to_sequence(given_side, rest, 0.5), kept, given_side, rest)


def test_dss_splits(toy):
    _, stream = _view_and_stream(toy, [*ordinary(), History(target=[(1, 44)])])
    by_time = split_streams(stream, 0.0, _rng())
    by_domain = split_streams(stream, 1.0, _rng())
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
    _, stream = _view_and_stream(toy, users)
    masked = draw_mask(stream, share, _rng(seed))
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
    view, stream = _view_and_stream(toy, users)
    objective = build("bert4rec", toy).double()
    masked = torch.tensor([[False, False, True, False]])
    item = view.item_ID.detach().requires_grad_()
    hidden = objective.encoder(item, stream, masked)
    gradient = torch.autograd.grad((hidden * torch.randn_like(hidden)).sum(), item)[0]
    reached = gradient[stream.item_UL[0]].abs().sum(1) > 0
    assert reached.tolist() == [True, True, False, True]


# SQN and SAC


def test_21_double_q_target_by_hand():
    reward, done = torch.tensor([0.2, 1.0, 1.0]), torch.tensor([False, False, True])
    main = torch.tensor([[1.0, 3.0], [2.0, 0.0], [9.0, 9.0]], requires_grad=True)
    other = torch.tensor([[5.0, 7.0], [-4.0, 8.0], [9.0, 9.0]], requires_grad=True)
    target = double_q_target(reward, done, main, other, 0.5)
    # The main head prefers action 1, then 0; the other head says what they are worth.
    assert target.tolist() == pytest.approx([0.2 + 0.5 * 7, 1 - 0.5 * 4, 1.0])
    assert not target.requires_grad


def test_21_no_gradient_through_the_target(toy, monkeypatch):
    """The head that only evaluates gets no gradient, and the learning one through Q(s, a) only."""
    seen = {}

    def fixed(reward, done, main, other, discount):
        seen["done"] = done
        return torch.full_like(reward, 3.0)

    model, batch = make_model(toy), make_batch(toy, ordinary())
    objective = build("sqn", toy)
    view = make_view(model, batch)
    objective.learner(view).temporal_N.mean().backward()
    heads = [head.weight.grad for head in objective.learner.values]
    assert sum(gradient is not None for gradient in heads) == 1
    monkeypatch.setattr("lcn.objectives.qlearning.double_q_target", fixed)
    terms = objective.learner(make_view(model, batch))
    assert torch.allclose(terms.temporal_N, 0.5 * (3.0 - terms.value_N).square())
    assert seen["done"].any() and not seen["done"].all()


def test_21_one_head_prefers_and_the_other_evaluates(toy, monkeypatch):
    """Heads that score everything alike, 1 and 2: the learning one is the one that prefers."""
    seen = []

    def spy(reward, done, main, other, discount):
        seen.append((main.unique().item(), other.unique().item()))
        return double_q_target(reward, done, main, other, discount)

    monkeypatch.setattr("lcn.objectives.qlearning.double_q_target", spy)
    objective = build("sqn", toy)
    with torch.no_grad():
        for head in objective.learner.values:
            head.weight.zero_()
        objective.learner.value_bias_2.copy_(torch.tensor([1.0, 2.0]))
    learning = []
    for seed in range(8):
        view = make_view(make_model(toy), make_batch(toy, ordinary()), seed)
        learning.append(objective.learner(view).value_N.unique().item())
    assert seen == [(value, 3 - value) for value in learning]
    assert set(learning) == {1.0, 2.0}


def test_21_the_newest_event_is_terminal(toy, monkeypatch):
    rewards = {}

    def spy(reward, done, main, other, discount):
        rewards["terminal"], rewards["count"] = reward[done], int(done.sum())
        return double_q_target(reward, done, main, other, discount)

    monkeypatch.setattr("lcn.objectives.qlearning.double_q_target", spy)
    users = [History(target=[(2, 41)], source=[(1, 3)]), History(target=[(1, 42)], source=[(5, 4)])]
    objective = build("sqn", toy, rewards=RewardConfig(source=0.25, target=2.0))
    terms = objective.learner(make_view(make_model(toy), make_batch(toy, users)))
    assert rewards["count"] == len(terms.value_N) == 2
    assert rewards["terminal"].tolist() == [2.0, 0.25]
    y = torch.tensor([2.0, 0.25])
    assert torch.allclose(terms.temporal_N, 0.5 * (y - terms.value_N).square())


def test_21_sac_weight_sends_no_gradient_into_q(toy):
    model, batch = make_model(toy), make_batch(toy, ordinary())
    objective = build("sac", toy)
    terms = objective.learner(make_view(model, batch))
    weight_N = critic_weight(terms.value_N, 0.1, 10.0)
    assert not weight_N.requires_grad
    assert weight_N.min() >= 0.1 and weight_N.max() <= 10
    (weight_N * terms.supervised_N).mean().backward()
    assert all(head.weight.grad is None for head in objective.learner.values)
    assert objective.learner.supervised.weight.grad.abs().sum() > 0


def test_sac_warms_up_as_sqn(toy):
    model, batch = make_model(toy), make_batch(toy, ordinary())
    sac = build("sac", toy, warmup_epochs=0.1)
    assert sac.warmup_steps == pytest.approx(0.1 * math.ceil(len(toy.samples["train"]) / 16))
    sqn = build("sqn", toy)
    cold = loss_of(sac, model, batch, step=0).item()
    assert cold == loss_of(sqn, model, batch, step=0).item()
    assert loss_of(sac, model, batch, step=1000).item() != cold


def test_rewards_by_kind_of_event(toy, tmp_path):
    setup = make_setup(toy)
    path = toy.folder / "vocabulary" / "event" / "kind.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"value": ["pv", "buy"], "index": [2, 3]}), path)
    config = RewardConfig(source=0.2, target=1.0, field="kind", values={"pv": 0.1, "buy": 5.0})
    position, reward_2V = read_rewards(config, setup)
    assert position == 0
    assert reward_2V[0].tolist() == pytest.approx([0.2, 0.2, 0.1, 5, 0.2, 0.2])
    assert reward_2V[1].tolist() == pytest.approx([1, 1, 0.1, 5, 1, 1])
    assert read_rewards(RewardConfig(), setup)[1].tolist() == [[pytest.approx(0.2)], [1.0]]
    for wrong, message in (
        (RewardConfig(field="knd"), "no event context field 'knd'; did you mean 'kind'"),
        (RewardConfig(field="kind", values={"pvv": 1}), "no value 'pvv'; did you mean 'pv'"),
        (RewardConfig(values={"pv": 1}), "needs rewards.field"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_rewards(wrong, setup)
    objective = build("sqn", toy, rewards=config)
    view, stream = _view_and_stream(toy, ordinary())
    reward_UL = objective.learner._rewards(view.batch, stream)
    row = stream.row_UL[0, 0]
    rows = view.batch.target if stream.target_UL[0, 0] else view.batch.source
    code = int(rows.context_TG[row, 0])
    assert reward_UL[0, 0] == reward_2V[int(stream.target_UL[0, 0]), code]


# CLRec


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
    stream = merge_stream(view.batch, view.latest_candidates(), StreamConfig(length=8), _rng())
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
    _same(objective(view), torch.stack(losses).mean(), weight)


def test_clrec_cuts_leave_a_label_behind():
    label = torch.tensor([[0, 0, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()
    seen = set()
    for seed in range(60):
        user, cut, place = draw_cuts(label, 3, _rng(seed))
        assert user.tolist() == [0, 2]
        seen |= set(zip(user.tolist(), cut.tolist(), place.tolist(), strict=True))
    first = {(0, 3, 3), (0, 4, 5), (0, 5, 5)}
    assert seen == first | {(2, 3, 5), (2, 4, 5), (2, 5, 5)}


def test_clrec_does_not_push_in_evaluation(toy):
    objective = build("clrec", toy).eval()
    loss_of(objective, make_model(toy), make_batch(toy, ordinary()))
    assert (objective.queue_2Q == -1).all()


# SSL


@pytest.mark.parametrize("fields", range(2, 9))
def test_23_views_split_all_fields(fields):
    partners = rank_partners(np.random.default_rng(0).random((fields, fields)))
    for seed in range(20):
        for masked in (random_mask(fields, _rng(seed)), correlated_mask(partners, _rng(seed))):
            assert 1 <= masked.sum() < fields
    halves = torch.stack([random_mask(fields, _rng(seed)) for seed in range(200)])
    assert (halves.sum(1) == max(fields // 2, 1)).all()
    assert halves.any(0).all()


def test_23_correlated_mask_contains_its_seed():
    """Fields 0 and 3, and 1 and 2, know each other: a mask is a field and its best partners."""
    information = np.array([[9, 0, 1, 5], [0, 9, 5, 1], [1, 5, 9, 0], [5, 1, 0, 9]], float)
    partners = rank_partners(information)
    assert partners.tolist() == [[3, 2, 1], [2, 3, 0], [1, 0, 3], [0, 1, 2]]
    expected = {frozenset({s, *partners[s, :2].tolist()}) for s in range(4)}
    masks = {
        frozenset(correlated_mask(partners, _rng(seed)).nonzero()[:, 0].tolist())
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
    stream = merge_stream(batch, view.latest_candidates(), StreamConfig(length=8), _rng())
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
    _same(objective(view), torch.stack(losses).mean(), *objective.user_tower.parameters())
    assert objective.memory_user_M[-3:].tolist() == [1, 3, 4]


def test_last_place_reads_the_newest(toy):
    _, stream = _view_and_stream(toy, ordinary())
    place = torch.arange(stream.item_UL.shape[1], dtype=torch.float64).expand(len(stream), -1)
    assert torch.equal(last_place(place[..., None], stream)[:, 0], stream.length_U - 1.0)
