"""SQN and SAC: the target, where its gradient stops, and rewards."""

import math

import numpy as np
import pytest
import torch
from objective_bench import (
    History,
    build,
    loss_of,
    make_batch,
    make_model,
    make_setup,
    make_view,
    ordinary,
    view_and_stream,
)

from lcn.errors import ConfigError
from lcn.objectives.qlearning import RewardConfig, double_q_target, read_rewards
from lcn.objectives.sac import critic_weight
from lcn.recipes import RECIPES


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


def test_what_was_only_shown_is_worth_nothing_where_the_log_tells(toy, monkeypatch):
    """Recipes take the mapping's responses; a log without them leaves the domain to decide."""
    label_V = np.array([-1, -1, 0, 1, 1, -1], np.int8)
    monkeypatch.setattr("lcn.objectives.qlearning.response_labels", lambda dataset: (0, label_V))
    position, reward_2V = read_rewards(RewardConfig(by_response=True), make_setup(toy))
    assert position == 0
    assert reward_2V[0].tolist() == pytest.approx([0.2, 0.2, 0, 0.2, 0.2, 0.2])
    assert reward_2V[1].tolist() == pytest.approx([1, 1, 0, 1, 1, 1])
    monkeypatch.setattr("lcn.objectives.qlearning.response_labels", lambda dataset: None)
    assert read_rewards(RewardConfig(by_response=True), make_setup(toy))[0] == -1
    assert RECIPES["lap_sac"]("").objectives[0].rewards.by_response


def test_rewards_by_kind_of_event(toy):
    setup = make_setup(toy)
    config = RewardConfig(source=0.2, target=1.0, field="kind", values={"liked": 0.1, "loved": 5.0})
    position, reward_2V = read_rewards(config, setup)
    assert position == 0
    assert reward_2V[0].tolist() == pytest.approx([0.2, 0.2, 0.1, 5, 0.2, 0.2])
    assert reward_2V[1].tolist() == pytest.approx([1, 1, 0.1, 5, 1, 1])
    assert read_rewards(RewardConfig(), setup)[1].tolist() == [[pytest.approx(0.2)], [1.0]]
    for wrong, message in (
        (RewardConfig(field="knd"), "no event context field 'knd'; did you mean 'kind'"),
        (RewardConfig(field="kind", values={"likd": 1}), "no value 'likd'; did you mean 'liked'"),
        (RewardConfig(values={"liked": 1}), "needs rewards.field"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_rewards(wrong, setup)
    objective = build("sqn", toy, rewards=config)
    view, stream = view_and_stream(toy, ordinary())
    reward_UL = objective.learner._rewards(view.batch, stream)
    row = stream.row_UL[0, 0]
    rows = view.batch.target if stream.target_UL[0, 0] else view.batch.source
    code = int(rows.context_TG[row, 0])
    assert reward_UL[0, 0] == reward_2V[int(stream.target_UL[0, 0]), code]
