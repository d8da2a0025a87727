"""Backbones in whole models: recipes, search tables, stopped gradients, unfit data."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toy import make_toy

from lcn.backbones import BACKBONES
from lcn.cli import cli
from lcn.config import load_config
from lcn.data.dataset import open_dataset
from lcn.data.loader import BatchConfig, Collator
from lcn.errors import ConfigError
from lcn.model import Model, ModelConfig
from lcn.recipes import RECIPES
from lcn.train import RunConfig, train
from lcn.train.config import TrainConfig, refuse_idle_settings
from lcn.train.loss import click_loss
from lcn.train.optimiser import build_optimisers

SMALL = {"width": 8, "field_width": 8, "hidden": (8,), "short": {"width": 8, "heads": 2}}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("systems"), users=20)


def batch_of(toy, count=32):
    samples = toy.samples["train"]
    return Collator(toy, "train", BatchConfig(size=count))(np.arange(len(samples))[-count:])


def model_of(toy, backbone, **options):
    torch.manual_seed(0)
    return Model(
        ModelConfig.model_validate({"backbone": backbone, **SMALL, **options}), toy.manifest
    )


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_a_model_that_says_its_name(name, toy):
    config = RECIPES[name]("data")
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    if name in BACKBONES:
        assert config.model.backbone.name == name and not config.objectives
        return
    special = {"lcn": "lap_crp", "lcn_paper": "lap_crp", "csa_crp": "lap_crp"}
    backbone, _, objective = special.get(name, name).rpartition("_")
    assert config.model.backbone.name == backbone
    assert [each.name for each in config.objectives] == [objective]
    assert config.title == name


@pytest.mark.parametrize("name", ["sim_soft", "eta", "sdim", "twin", "lap"])
def test_an_own_search_table_decides_and_the_objective_sees_it(name, toy):
    model = model_of(toy, {"name": name}, search_table="own").eval()
    batch = batch_of(toy)
    before = model(batch)
    with torch.no_grad():
        for table in model.search_item.embed.tables:
            table.weight[2:] = torch.randn(table.weight[2:].shape)
    after = model(batch)
    assert not torch.equal(after.item_ID, before.item_ID)
    assert torch.equal(after.item_ID, model.contrasted_item(batch.item_IF.long()))
    with torch.no_grad():
        item_ID = model.item(batch.item_IF.long())
    assert not torch.allclose(after.item_ID, item_ID)
    assert not torch.equal(after.interest.vector_CW, before.interest.vector_CW)


@pytest.mark.parametrize("name", ["sim_soft", "twin", "lap"])
def test_cosine_search_does_not_see_the_length_of_item_vectors(name, toy):
    """Rows are found by direction alone; what is pooled is still the item vector."""
    backbone = {"name": "lap", "use_msa": False} if name == "lap" else {"name": name}
    options = {"keep": 4} if "keep" in BACKBONES[name].Config.model_fields else {}
    options = {"k1": 4, "k2": 4} if name == "lap" else options
    metric = {"search_metric": "cosine", "search_temperature": 0.2}
    model = model_of(toy, {**backbone, **options}, **metric).eval()
    batch = batch_of(toy)
    vector_ID = torch.randn(len(batch.item_IF), 8)
    length_I1 = torch.rand(len(batch.item_IF), 1) + 0.5

    def found(item_ID):
        model.item.forward = lambda _: item_ID
        parts = model.embed(batch)
        state = model.backbone.encode(parts.history)
        searched = parts.history.search_vector_ID
        return searched, model.backbone.preceding(state, parts.query, batch.lifelong_C2, 4)

    search_ID, kept_CK = found(vector_ID)
    torch.testing.assert_close(
        search_ID @ search_ID.T / math.sqrt(8),
        torch.nn.functional.cosine_similarity(vector_ID[:, None], vector_ID, dim=2) / 0.2,
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    if name != "twin":  # TWIN searches with the attention, context included
        assert torch.equal(kept_CK, found(vector_ID * length_I1)[1])


@pytest.mark.parametrize("name", ["none", "full", "sim_hard"])
def test_cosine_search_is_refused_where_nothing_searches(name, toy):
    with pytest.raises(ConfigError, match=r"search_metric: cosine .* lap"):
        model_of(toy, {"name": name}, search_metric="cosine")


@pytest.mark.parametrize("name", ["eta", "sdim"])
def test_cosine_search_is_refused_where_angles_are_searched_already(name, toy):
    with pytest.raises(ConfigError, match="by the angle of item vectors already"):
        model_of(toy, {"name": name}, search_metric="cosine")


def test_a_bias_that_nothing_could_teach_is_refused(toy):
    with pytest.raises(ConfigError, match="time_bias is learned through"):
        model_of(toy, {"name": "lap", "time_bias": True, "use_csa_output": False})


def test_the_temperature_of_cosine_search_learns(toy):
    model = model_of(toy, {"name": "lap"}, search_metric="cosine")
    model(batch_of(toy)).logit_C.sum().backward()
    assert model.sharpness.grad.abs() > 0


@pytest.mark.parametrize("name", ["none", "full", "sim_hard"])
def test_an_own_search_table_is_refused_where_nothing_searches(name, toy):
    with pytest.raises(ConfigError, match="for sim_soft, eta, sdim, twin, lap"):
        model_of(toy, {"name": name}, search_table="own")


@pytest.mark.parametrize("name", ["sim_soft", "eta", "sdim", "twin", "lap"])
def test_a_frozen_search_table_decides_and_nothing_moves_it(name, toy):
    model = model_of(toy, {"name": name}, search_table="frozen")
    batch = batch_of(toy)
    before = model.eval()(batch).interest.vector_CW
    with torch.no_grad():
        for table in model.search_item.embed.tables:
            table.weight[2:] = torch.randn(table.weight[2:].shape)
    output = model.train()(batch)
    assert not torch.equal(output.interest.vector_CW, before)
    # Objectives see, and move, what the model learns.
    assert torch.equal(output.item_ID, model.item(batch.item_IF.long()))
    (output.logit_C.sum() + output.item_ID.square().sum()).backward()
    assert all(parameter.grad is None for parameter in model.search_item.parameters())
    assert all(parameter.grad is not None for parameter in model.item.parameters())
    optimisers = build_optimisers([model], TrainConfig())
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    moved = {id(parameter) for group in groups for parameter in group["params"]}
    assert moved == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("table", ["shared", "own", "frozen"])
@pytest.mark.parametrize("stop", ["none", "main", "objective"])
def test_gradients_stop_where_they_are_told_to(table, stop, toy):
    model = model_of(toy, {"name": "lap"}, search_table=table, stop_gradient=stop)
    output = model(batch_of(toy))
    seen = model.contrasted_item.embed.tables[0].weight

    def moves(loss):
        if not loss.requires_grad:
            return False
        grad = torch.autograd.grad(loss, seen, retain_graph=True, allow_unused=True)[0]
        return grad is not None and bool((grad != 0).any())

    assert moves(output.logit_C.sum()) == (stop != "main")
    assert moves(output.item_ID.square().sum()) == (stop != "objective")
    # What objectives encode themselves is of the same table and stops alike.
    item_IF = batch_of(toy).item_IF.long()
    assert torch.equal(model.tables.encode_items(item_IF), output.item_ID)
    assert moves(model.tables.encode_items(item_IF).square().sum()) == (stop != "objective")
    assert moves(model.tables.embed_items(item_IF).square().sum()) == (stop != "objective")


def test_item_vectors_that_nothing_would_train_are_refused():
    with pytest.raises(ConfigError, match="add an objective"):
        load_config(RunConfig, None, ["dataset=d", "model.stop_gradient=main"])


def test_a_field_that_the_data_lacks_is_named_with_the_nearest(toy):
    with pytest.raises(ConfigError, match="no item field 'catgory'; did you mean 'category'"):
        model_of(toy, {"name": "sim_hard", "key": "catgory"})


def test_data_in_which_nothing_can_match_is_refused_before_training(tmp_path):
    """Source and target categories disjoint, as the public split makes them."""
    folder = tmp_path / "disjoint"
    make_toy(folder, users=20)
    item_IF = np.load(folder / "items.npy")
    candidates = np.load(folder / "samples/train/item.npy")
    item_IF[np.unique(candidates), 1] = 1
    np.save(folder / "items.npy", item_IF)
    config = RECIPES["sim_hard"](str(folder))
    with pytest.raises(ConfigError, match=r"no source-domain event can match .* 'category'"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="hard search cannot work on this data"):
        model_of(open_dataset(folder), {"name": "sim_hard"}).check(open_dataset(folder))


def test_another_field_that_would_match_is_suggested(tmp_path):
    folder = tmp_path / "other"
    make_toy(folder, users=20)
    item_IF = np.load(folder / "items.npy")
    shown = np.unique(np.load(folder / "samples/train/item.npy"))
    item_IF[shown, 1] = 1
    item_IF[shown, 0] = 2
    np.save(folder / "items.npy", item_IF)
    dataset = open_dataset(folder)
    with pytest.raises(ConfigError, match=r"set model.backbone.key to 'item'"):
        model_of(dataset, {"name": "sim_hard"}).check(dataset)


def test_models_lists_backbones_and_objectives():
    done = CliRunner().invoke(cli, ["models", "--json"])
    assert done.exit_code == 0, done.output
    entries = json.loads(done.stdout)
    kinds = {entry["name"]: entry["kind"] for entry in entries}
    assert kinds["sdim"] == "backbone" and kinds["crp"] == "objective"
    assert all(entry["summary"] for entry in entries)
    eta = next(entry for entry in entries if entry["name"] == "eta")
    bits = next(setting for setting in eta["settings"] if setting["name"] == "bits")
    assert bits["default"] == 32 and bits["type"] == "integer" and bits["help"]
    assert eta["source"] and eta["assumes"]


def test_models_prints_one_model_with_its_settings():
    done = CliRunner().invoke(cli, ["models", "twin"])
    assert done.exit_code == 0 and "round_robin | mean_alpha | per_head" in done.stdout
    wrong = CliRunner().invoke(cli, ["models", "twn"])
    assert isinstance(wrong.exception, ConfigError) and "'twin'" in str(wrong.exception)


@pytest.mark.parametrize(
    ("name", "options", "learns"),
    [
        ("sim_soft", {}, True),
        ("sim_soft", {"alpha": 0.0}, False),
        ("eta", {}, False),
        ("sdim", {}, False),
        ("twin", {}, True),
        ("lap", {}, True),
        ("lap", {"use_csa_output": False}, False),
        ("lap", {"use_csa_output": False, "search_loss": 1.0}, True),
        ("lap", {"use_csa_output": False, "distill": 1.0}, True),
    ],
)
def test_search_vectors_that_nothing_trains_are_refused(name, options, learns, toy):
    model = model_of(toy, {"name": name, **options}, search_table="own").train()
    batch = batch_of(toy)
    loss, _ = click_loss(model, model(batch), batch)
    loss.backward()
    gradients = [parameter.grad for parameter in model.search_item.parameters()]
    assert any(each is not None and each.to_dense().any() for each in gradients) == learns
    tree = {"dataset": "d", "model": model.config.model_dump()}
    config = RunConfig.model_validate(tree)
    if learns:
        refuse_idle_settings(config)
        return
    with pytest.raises(ConfigError, match="searches with vectors that nothing trains"):
        refuse_idle_settings(config)
    for more in ({"objectives": [{"name": "crp"}]}, {"item_vectors_from": "a-run"}):
        refuse_idle_settings(RunConfig.model_validate({**tree, **more}))


def test_an_item_without_any_known_field_has_no_direction_and_moves_nothing(toy):
    """Unknown values start as the zero vector; its direction has no gradient to speak of."""
    model = model_of(toy, {"name": "lap"}, search_metric="cosine").train()
    batch = batch_of(toy)
    batch.item_IF[:3] = 1
    loss, _ = click_loss(model, model(batch), batch)
    loss.backward()
    largest = max(
        parameter.grad.to_dense().abs().max().item()
        for parameter in model.parameters()
        if parameter.grad is not None
    )
    assert largest < 10


def test_settings_that_nothing_would_read_are_refused():
    tree = {"dataset": "d", "model": {"backbone": {"name": "lap", "recent_queries": 30}}}
    with pytest.raises(ConfigError, match=r"a short-term history holds 5; raise batch\.short"):
        refuse_idle_settings(RunConfig.model_validate({**tree, "batch": {"short": 5}}))
    tree = {"dataset": "d", "objectives": [{"name": "crp"}]}
    model = {"stop_gradient": "main", "backbone": {"name": "lap", "search_loss": 1.0}}
    with pytest.raises(ValueError, match="search_loss trains item vectors"):
        RunConfig.model_validate({**tree, "model": model})
