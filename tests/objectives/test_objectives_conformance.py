"""One suite that every objective passes."""

import dataclasses
import math

import pytest
import torch
import yaml
from objective_bench import (
    SOURCE,
    TARGET,
    History,
    build,
    item_gradient,
    loss_of,
    make_batch,
    make_model,
    make_setup,
    ordinary,
    small_config,
)
from pydantic import TypeAdapter
from safetensors.torch import load, save

from lcn.backbones.lap import Lap
from lcn.config import dump_config, parse_config
from lcn.errors import ConfigError
from lcn.objectives import OBJECTIVES, Objective, ObjectiveConfig, build_objective
from lcn.recipes import RECIPES
from lcn.train.config import RunConfig

NAMES = list(OBJECTIVES)
# These two look at items or samples, not at histories; the others have nothing to learn there.
NEEDS_NO_HISTORY = {"ssl", "cl4ctr"}
# A single user has no other user to be contrasted with; these contrast with items instead.
LEARNS_FROM_ONE_USER = {"ssl", "bert4rec", "sqn", "sac", "cl4srec", "fism"}


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trip(name):
    config = small_config(name, weight=0.25)
    again = TypeAdapter(ObjectiveConfig).validate_json(config.model_dump_json())
    assert again == config and type(again) is type(config)
    run = RunConfig(dataset="d", objectives=(config,))
    assert parse_config(RunConfig, yaml.safe_load(dump_config(run))) == run


@pytest.mark.parametrize("name", NAMES)
def test_unknown_setting_is_an_error(name):
    with pytest.raises(ConfigError, match="unknown key"):
        parse_config(RunConfig, {"dataset": "d", "objectives": [{"name": name, "wieght": 1}]})


@pytest.mark.parametrize("name", NAMES)
def test_is_described_and_has_a_recipe(name):
    kind = OBJECTIVES[name]
    assert kind.Config().name == name
    assert kind.source and kind.assumes
    recipe = RECIPES[f"lap_{name}"]("d")
    assert [each.name for each in recipe.objectives] == [name]
    assert recipe.model.backbone.name == "lap"
    assert not any(issubclass(other, kind) for other in OBJECTIVES.values() if other is not kind)


@pytest.mark.parametrize("name", NAMES)
def test_item_vectors_of_both_domains_move(toy, name):
    model, batch = make_model(toy), make_batch(toy, ordinary())
    objective = build(name, toy)
    loss_of(objective, model, batch)
    loss = loss_of(objective, model, batch)
    loss.backward()
    assert torch.isfinite(loss) and loss.item() != 0
    for domain in (SOURCE, TARGET):
        assert (item_gradient(model, domain).norm(dim=1) > 1e-8).sum() >= 2
    for part, parameter in objective.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad.to_dense()).all(), part


@pytest.mark.parametrize("name", NAMES)
def test_an_own_search_table_is_what_objectives_move(toy, name):
    """Batch items and drawn items alike come from the search table; the other one stands still."""
    model = make_model(toy, backbone=Lap.Config(k1=4, k2=2), search_table="own")
    objective, batch = build(name, toy), make_batch(toy, ordinary())
    for seed in range(2):
        loss_of(objective, model, batch, seed).backward()
    assert item_gradient(model, SOURCE + TARGET).abs().sum() == 0
    moved = model.search_item.embed.tables[0].weight.grad
    assert moved is not None and moved.to_dense().abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_stopped_gradients_leave_items_alone(toy, name):
    """Items of the batch and items drawn from the corpus alike."""
    model = make_model(toy, stop_gradient="objective")
    objective, batch = build(name, toy), make_batch(toy, ordinary())
    for seed in range(2):
        loss = loss_of(objective, model, batch, seed)
        if loss.requires_grad:
            loss.backward()
    assert all(parameter.grad is None for parameter in model.item.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(toy, name):
    model, batch = make_model(toy), make_batch(toy, ordinary(users=16))
    objective = build(name, toy)
    for seed in range(12):
        loss_of(objective, model, batch, seed).backward()
    idle = [
        part
        for part, parameter in objective.named_parameters()
        if parameter.grad is None or not parameter.grad.to_dense().abs().sum() > 0
    ]
    # Only views that mask events read the mask token.
    allowed = [] if name in ("bert4rec", "cl4srec") else ["mask_D"]
    assert [part for part in idle if part.rsplit(".", 1)[-1] not in allowed] == []


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_same_loss(toy, name):
    model, batch = make_model(toy), make_batch(toy, ordinary())
    first, second, other = (loss_of(build(name, toy), model, batch, s).item() for s in (3, 3, 4))
    assert first == second
    # Two positives and no queue yet: a first step of CLRec is 0 whatever is drawn. FISM draws none.
    if name not in ("clrec", "at4ctr", "fism"):
        assert first != other


@pytest.mark.parametrize("name", NAMES)
def test_a_user_counts_once(toy, name):
    if name == "cl4ctr":
        pytest.skip("regularises samples, not users")
    users = ordinary()
    model = make_model(toy)
    once = loss_of(build(name, toy), model, make_batch(toy, users))
    users[2] = dataclasses.replace(users[2], labels=users[2].labels * 5)
    repeated = loss_of(build(name, toy), model, make_batch(toy, users))
    assert repeated.item() == pytest.approx(once.item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_events_behind_the_moment_are_not_read(toy, name):
    users = ordinary()
    # Items that are in the batch anyway, so that only the rows differ.
    shown = [address for _, address in users[0].source]
    model, objective = make_model(toy), build(name, toy)
    plain = loss_of(objective, model, make_batch(toy, users))
    users[1] = dataclasses.replace(users[1], unseen=shown)
    users[3] = dataclasses.replace(users[3], unseen=shown[:2])
    later = loss_of(build(name, toy), model, make_batch(toy, users))
    assert later.item() == pytest.approx(plain.item(), rel=1e-6)


BOTH = ([(1, 41), (3, 42), (5, 43), (7, 44)], [(2, 1), (4, 2), (6, 3), (8, 4)])
DEGENERATE = {
    "no events": [History(), History(), History()],
    "one user": [History(*BOTH)],
    "no target events": [History(source=BOTH[1]), History(source=BOTH[1][:1]), History()],
    "no source events": [History(target=BOTH[0]), History(target=BOTH[0][:1]), History()],
    "one event each": [History(target=[(1, 41)]), History(source=[(1, 1)])],
    "identical items": [History([(t, 41) for t in range(4)], [(t, 1) for t in range(4)])] * 3,
    "no clicks": [History(*BOTH, labels=(0.0,)), History(*BOTH, labels=(0.0,))],
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_batches(toy, name, case):
    model, batch = make_model(toy), make_batch(toy, DEGENERATE[case])
    objective = build(name, toy)
    for _ in range(2):
        loss = loss_of(objective, model, batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(item_gradient(model, SOURCE + TARGET)).all()
        for parameter in objective.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad.to_dense()).all()
        nothing = case == "no events" and name not in NEEDS_NO_HISTORY
        alone = case == "one user" and name not in LEARNS_FROM_ONE_USER
        if nothing or alone:
            assert loss.item() == 0
            assert item_gradient(model, SOURCE + TARGET).abs().sum() == 0


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_goes_on_the_same(toy, name):
    model = make_model(toy)
    objective, batch = build(name, toy), make_batch(toy, ordinary())
    loss_of(objective, model, batch)
    saved = save({key: value.clone() for key, value in objective.state_dict().items()})
    expected = loss_of(objective, model, batch, seed=1).item()
    again = build(name, toy, seed=99)
    again.load_state_dict(load(saved))
    assert loss_of(again, model, batch, seed=1).item() == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_lower_the_loss(toy, name):
    model, batch = make_model(toy), make_batch(toy, ordinary(users=16))
    objective = build(name, toy)
    optimiser = torch.optim.Adam([*model.item.parameters(), *objective.parameters()], lr=5e-3)
    losses = []
    for step in range(60):
        optimiser.zero_grad()
        loss = loss_of(objective, model, batch, seed=step)
        losses.append(loss.item())
        loss.backward()
        optimiser.step()
    # The first steps of CLRec fill its queue.
    early, late = sum(losses[5:15]), sum(losses[-10:])
    assert late < 0.95 * early


CHANCE = {
    # Σ over three terms of log(1 + negatives) with 8 users.
    "crp": 3 * math.log(8),
    # log 40, the items of a domain, for each label.
    "bert4rec": 3.7,
    "sqn": 3.7,
    # 16 items of each domain are drawn, of which about 13 are distinct.
    "ssl": 2.5,
    # NT-Xent of 16 views, and a next item.
    "cl4srec": 2.7 + 3.7,
    # 7 other users with 4 intents each on the label side, and about as many next items.
    "dss": 3.4 + 2.5,
}


@pytest.mark.parametrize("name", NAMES)
def test_scale_at_the_start(toy, name):
    torch.manual_seed(0)
    model = make_model(toy)
    with torch.no_grad():
        model.item.embed.tables[0].weight[2:].normal_(std=0.05)
    # At the default temperatures chance cosines of narrow vectors weigh too much to compare.
    tempered = "temperature" in OBJECTIVES[name].Config.model_fields
    objective = build(name, toy, **({"temperature": 1.0} if tempered else {}))
    batch = make_batch(toy, ordinary())
    values = [loss_of(objective, model, batch, seed).item() for seed in range(6)][1:]
    mean = sum(values) / len(values)
    assert 0 < mean < 16
    if name in CHANCE:
        assert mean == pytest.approx(CHANCE[name], rel=0.35)


@pytest.mark.parametrize("name", NAMES)
def test_build_by_config(toy, name):
    objective = build_objective(small_config(name), make_setup(toy))
    assert isinstance(objective, Objective) and objective.weight == small_config(name).weight
