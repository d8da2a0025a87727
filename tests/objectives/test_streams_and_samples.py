"""The plumbing that objectives share: streams, draws, the sampled softmax and the corpus."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_bench import (
    History,
    make_batch,
    make_model,
    make_setup,
    make_view,
    ordinary,
)

from lcn.data.corpus import build_corpus
from lcn.data.loader import BatchConfig, Collator
from lcn.objectives.contrast import item_key
from lcn.objectives.draw import below, pick_one, pick_some
from lcn.objectives.encoder import EncoderConfig, StreamEncoder, last_place
from lcn.objectives.sampled import (
    Candidates,
    SoftmaxConfig,
    draw_candidates,
    draw_domains,
    next_item_loss,
    sampled_softmax,
)
from lcn.objectives.stream import StreamConfig, compact, merge_stream, next_places
from lcn.schema import DOMAINS


def _stream(toy, histories, **config):
    batch = make_batch(toy, histories)
    view = make_view(make_model(toy).double(), batch)
    return (
        batch,
        view,
        merge_stream(batch, view.latest_candidates(), StreamConfig(**config), view.generator),
    )


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_stream_is_the_newest_events_by_time(toy, data):
    length = data.draw(st.integers(1, 9))
    domains = data.draw(st.sampled_from(["both", "target", "source"]))
    users = []
    for _ in range(data.draw(st.integers(1, 4))):
        times = data.draw(st.lists(st.integers(0, 99), unique=True, max_size=10))
        cut = data.draw(st.integers(0, len(times)))
        users.append(
            History([(t, 41 + t % 40) for t in times[:cut]], [(t, 1 + t % 40) for t in times[cut:]])
        )
    batch, _, stream = _stream(toy, users, length=length, domains=domains)
    expected = []
    for number, user in enumerate(users):
        events = [*user.target] if domains != "source" else []
        events += [*user.source] if domains != "target" else []
        if events:
            expected.append((number, [address for _, address in sorted(events)][-length:]))
    assert stream.user_U.tolist() == [number for number, _ in expected]
    for row, (_, addresses) in enumerate(expected):
        item_L = stream.item_UL[row]
        assert batch.address_I[item_L[item_L >= 0]].tolist() == addresses
        assert stream.target_UL[row].tolist()[: len(addresses)] == [a > 40 for a in addresses]
        assert (item_L[len(addresses) :] == -1).all()
    for target, rows in ((False, batch.source), (True, batch.target)):
        own = stream.of_domain(target=target)
        assert torch.equal(rows.item_T[stream.row_UL[own]].long(), stream.item_UL[own])


def test_stream_of_a_real_batch_holds_each_user_once(toy):
    collate = Collator(toy, "train", BatchConfig(short=50))
    batch = collate(np.arange(200))
    view = make_view(make_model(toy), batch)
    stream = merge_stream(batch, view.latest_candidates(), StreamConfig(), view.generator)
    assert stream.user_U.unique().numel() == len(stream)
    latest = view.latest_candidates()
    assert torch.equal(batch.user_of_C[latest], torch.arange(len(batch.address_U)))
    store, samples = toy.events, toy.samples["train"]
    for row in range(len(stream)):
        user = int(batch.address_U[stream.user_U[row]])
        sample = int(batch.sample_C[latest[stream.user_U[row]]])
        events = []
        for domain in DOMAINS:
            first = store[domain].offsets_U[user]
            end = getattr(samples, f"{domain}_end_S")[sample]
            events += [
                (int(store[domain].time_E[e]), domain == "target", int(store[domain].item_E[e]))
                for e in range(first, end)
            ]
        expected = [address for _, _, address in sorted(events)][-50:]
        item_L = stream.item_UL[row]
        assert batch.address_I[item_L[item_L >= 0]].tolist() == expected


def test_at_most_so_many_users(toy):
    _, _, stream = _stream(toy, ordinary(), users=3)
    assert len(stream) == 3 and stream.user_U.unique().numel() == 3


def test_next_places_and_compact(toy):
    _, view, stream = _stream(toy, ordinary())
    user_N, place_N = next_places(stream, 0, view.generator)
    assert len(user_N) == int((stream.length_U - 1).sum())
    user_N, place_N = next_places(stream, 2, view.generator)
    assert user_N.bincount().max() <= 2
    assert (stream.item_UL[user_N, place_N + 1] >= 0).all()
    valid = torch.tensor([[True, False, True], [False, False, False]])
    assert compact(valid).tolist() == [[0, 2, -1], [-1, -1, -1]]


def test_picks_are_uniform():
    generator = torch.Generator().manual_seed(0)
    valid = torch.tensor([[True, False, True, True]]).expand(9000, -1)
    one = pick_one(valid, generator)
    assert (one.bincount(minlength=4) / 9000).tolist() == pytest.approx(
        [1 / 3, 0, 1 / 3, 1 / 3], abs=0.02
    )
    some = pick_some(valid, 2, generator)
    assert (some.sum(1) == 2).all()
    assert some.float().mean(0).tolist() == pytest.approx([2 / 3, 0, 2 / 3, 2 / 3], abs=0.02)
    assert pick_one(torch.zeros(2, 3, dtype=torch.bool), generator).tolist() == [-1, -1]
    drawn = below(torch.tensor([5] * 5000 + [0]), generator)
    assert drawn[:-1].bincount().tolist() == pytest.approx([1000] * 5, rel=0.15) and drawn[-1] == 0


@pytest.mark.parametrize("causal", [True, False])
def test_encoder_reads_what_it_may(toy, causal):
    """Causal: no place sees a later one. Padding changes nothing."""
    _, view, stream = _stream(toy, ordinary())
    torch.manual_seed(0)
    config = EncoderConfig(layers=2, dropout=0.0, hidden=16)
    encoder = StreamEncoder(16, 50, config, causal=causal).double()
    item = view.item_ID.detach().requires_grad_()
    hidden = encoder(item, stream)
    gradient = torch.autograd.grad(hidden[0, 2].square().sum(), item, retain_graph=True)[0]
    own = stream.item_UL[0]
    later = [i for i in own[3:].tolist() if i not in own[:3].tolist() and i >= 0]
    assert gradient[own[:3]].abs().sum() > 0
    assert (gradient[later].abs().sum() > 0) == (not causal)
    alone = stream.of_users(torch.tensor([1]))
    short = alone.take(torch.arange(int(alone.length_U[0]))[None])
    assert torch.allclose(encoder(item, short)[0], hidden[1, : short.item_UL.shape[1]])
    assert torch.allclose(last_place(hidden, stream)[1], hidden[1, short.item_UL.shape[1] - 1])


def test_corpus_counts_what_training_knows(toy):
    corpus, samples = build_corpus(toy), toy.samples["train"]
    for domain in DOMAINS:
        store, end_S = toy.events[domain], getattr(samples, f"{domain}_end_S")
        known = set()
        for user, end in zip(samples.user_S, end_S, strict=True):
            known |= set(range(int(store.offsets_U[user]), int(end)))
        count = np.bincount(store.item_E[sorted(known)], minlength=len(toy.item_IF))
        items = corpus.domains[domain]
        assert np.array_equal(items.count_I.numpy(), count)
        shown = set(samples.item_S.tolist()) if domain == "target" else set()
        assert set(items.address_V.tolist()) == set(np.flatnonzero(count).tolist()) | shown
        assert items.share(torch.arange(len(count))).sum().item() == pytest.approx(1)
        assert all((a > 40) == (domain == "target") for a in items.address_V.tolist())
    late = toy.events["source"]
    assert corpus.domains["source"].count_I.sum() < len(late.item_E)
    assert torch.equal(
        corpus.fields(torch.tensor([3, 5])), torch.tensor(toy.item_IF[[3, 5]]).long()
    )


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("negatives", [4, 1000])
def test_candidates_are_of_one_domain_and_not_the_label(toy, domain, negatives):
    _, view, stream = _stream(toy, ordinary())
    corpus = make_setup(toy).corpus
    config = SoftmaxConfig(negatives=negatives, in_batch=4)
    drawn = draw_candidates(view, corpus, stream, domain, config)
    address = drawn.index_K - 1
    assert ((address > 40) == (domain == "target")).all()
    assert drawn.key_K.unique().numel() == len(drawn.key_K)
    key = drawn.key_K[:2]
    loss = sampled_softmax(torch.full((2, len(drawn.key_K)), 3.0), torch.zeros(2), key, drawn)
    # The label's own column leaves the sum, whatever its score.
    logit = torch.full((2, len(drawn.key_K)), 3.0)
    logit[0, 0], logit[1, 1] = 50.0, 50.0
    assert torch.equal(loss, sampled_softmax(logit, torch.zeros(2), key, drawn))


def test_small_domain_gives_the_whole_softmax(toy):
    """Every item a candidate: exactly -log softmax over the domain, value and gradient."""
    _, view, stream = _stream(toy, ordinary())
    corpus = make_setup(toy).corpus
    drawn = draw_domains(view, corpus, stream, SoftmaxConfig(negatives=100, in_batch=7))
    user_N, place_N = next_places(stream, 3, view.generator)
    label_N = stream.item_UL[user_N, place_N + 1]
    target_N = stream.target_UL[user_N, place_N + 1]
    query = torch.randn(len(label_N), 16, dtype=torch.float64, requires_grad=True)
    bias = torch.nn.Embedding(200, 1, dtype=torch.float64)
    loss_N = next_item_loss(view, query, label_N, target_N, drawn, bias)
    expected = []
    for row, (label, target) in enumerate(zip(label_N.tolist(), target_N.tolist(), strict=True)):
        address_V = corpus.domains["target" if target else "source"].address_V
        field_VF = corpus.fields(address_V)
        logit_V = view.encode(field_VF) @ query[row] + bias(field_VF[:, 0])[:, 0]
        at = address_V.tolist().index(int(view.batch.address_I[label]))
        expected.append(-torch.log_softmax(logit_V, 0)[at])
    expected_N = torch.stack(expected)
    assert torch.allclose(loss_N, expected_N, rtol=1e-9)
    weight = torch.rand(len(label_N), dtype=torch.float64)
    fast, slow = (
        torch.autograd.grad((weight * each).sum(), query, retain_graph=True)[0]
        for each in (loss_N, expected_N)
    )
    assert torch.allclose(fast, slow, rtol=1e-8)


def test_sampled_softmax_by_hand():
    """Candidate 5 is drawn with chance 1/4 and stands for 4; candidate 7 is the second label."""
    drawn = Candidates(torch.zeros(2, 3), torch.tensor([5, 7]), None, torch.tensor([0.25, 1]).log())
    logit = torch.tensor([[2.0, 3.0], [2.0, 3.0]]).log()
    loss = sampled_softmax(logit, torch.tensor([5.0, 6.0]).log(), torch.tensor([9, 7]), drawn)
    expected = [-math.log(5 / (5 + 4 * 2 + 3)), -math.log(6 / (6 + 4 * 2))]
    assert loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_partition_sum_is_unbiased(toy):
    """Σ e^logit / P(drawn) over many draws has the mean of the whole domain's Σ e^logit."""
    _, view, stream = _stream(toy, [History()])
    corpus = make_setup(toy).corpus
    logit_by_index = torch.linspace(-2, 2, 200, dtype=torch.float64)
    full = logit_by_index[corpus.fields(corpus.domains["source"].address_V)[:, 0]].exp().sum()
    sums = []
    for _ in range(800):
        drawn = draw_candidates(view, corpus, stream, "source", SoftmaxConfig(negatives=8))
        weight = (logit_by_index[drawn.index_K] - drawn.log_chance_K).exp()
        sums.append(float(weight.sum()))
    assert np.mean(sums) == pytest.approx(float(full), abs=4 * np.std(sums) / math.sqrt(800))
    assert np.std(sums) > 0.01 * float(full)


@pytest.mark.parametrize("in_batch", [5, 1024])
def test_chances_count_batch_draws(toy, in_batch):
    """Chance of an item under both draws, worked out: 1 - (1 - 1/V)^n (1 - share)^m, m no more than
    the events there are, which then are all taken."""
    _, view, stream = _stream(toy, ordinary())
    corpus = make_setup(toy).corpus
    config = SoftmaxConfig(negatives=8, in_batch=in_batch)
    drawn = draw_candidates(view, corpus, stream, "target", config)
    items, events = corpus.domains["target"], stream.item_UL[stream.of_domain(target=True)]
    if in_batch > len(events):
        index_N = corpus.fields(view.batch.address_I[events])[:, 0]
        assert torch.isin(index_N, drawn.index_K).all()
    for index, log_chance in zip(drawn.index_K.tolist(), drawn.log_chance_K.tolist(), strict=True):
        share = int(items.count_I[index - 1]) / int(items.count_I.sum())
        expected = 1 - (1 - 1 / len(items)) ** 8 * (1 - share) ** min(in_batch, len(events))
        assert log_chance == pytest.approx(math.log(expected), rel=1e-5)


def test_item_keys_tell_fields_apart():
    field = torch.cartesian_prod(torch.arange(60), torch.arange(60), torch.arange(9))
    assert item_key(field).unique().numel() == len(field)
    assert torch.equal(item_key(field[:5].int()), item_key(field[:5]))
