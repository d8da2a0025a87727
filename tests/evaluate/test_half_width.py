"""Half-width histories: what is stored, what is the same in training and serving, and the gate."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lcn.backbones import BACKBONES
from lcn.cli import cli
from lcn.data.loader import BatchConfig, Collator
from lcn.evaluate.half_width import HalfWidth, measure_half_width
from lcn.evaluate.predict import predict_logits
from lcn.model import Model, ModelConfig
from lcn.recipes import RECIPES
from lcn.train import train

SMALL = {"width": 8, "field_width": 8, "hidden": (8,), "short": {"width": 8, "heads": 2}}
SEARCHING = ["sim_hard", "sim_soft", "eta", "sdim", "twin", "lap", "full"]
BATCH = BatchConfig(size=64, lifelong=60, short=5)


def model_of(toy, name, **options):
    torch.manual_seed(0)
    backbone = {"name": name}
    fields = BACKBONES[name].Config.model_fields
    backbone |= {key: 4 for key in ("k1", "k2", "keep") if key in fields}
    config = {"backbone": backbone, **SMALL, "embedding": {"std": 0.5}, **options}
    return Model(ModelConfig.model_validate(config), toy.manifest).eval()


@pytest.mark.parametrize("name", SEARCHING)
def test_an_encoded_state_is_stored_in_half_the_width(name, toy):
    model = model_of(toy, name, history_vectors="bfloat16")
    batch = Collator(toy, "train", BATCH)(np.arange(40))
    with torch.no_grad():
        state = model.backbone.encode(model.embed(batch).history)
    assert state.rows.vector_ID.dtype == torch.bfloat16


@pytest.mark.parametrize("name", SEARCHING)
@pytest.mark.parametrize("table", ["shared", "own"])
def test_training_and_serving_see_the_same_rounded_vectors(name, table, toy):
    if table == "own" and not BACKBONES[name].searches:
        pytest.skip("searches by no vectors")
    model = model_of(toy, name, history_vectors="bfloat16", search_table=table)
    batch = Collator(toy, "train", BATCH)(np.arange(40))
    learning = model(batch)
    with torch.no_grad():
        serving = model(batch)
    torch.testing.assert_close(learning.logit_C, serving.logit_C, rtol=1e-5, atol=1e-6)
    learning.logit_C.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.item.parameters() if p.grad is not None)


def test_only_histories_are_rounded(toy):
    full, half = model_of(toy, "lap"), model_of(toy, "lap", history_vectors="bfloat16")
    batch = Collator(toy, "train", BATCH)(np.arange(40))
    with torch.no_grad():
        one, other = full.embed(batch), half.embed(batch)
    assert torch.equal(one.query.vector_CD, other.query.vector_CD)
    assert torch.equal(one.history.rows.vector_ID.bfloat16(), other.history.rows.vector_ID)
    assert not torch.equal(one.history.rows.vector_ID, other.history.rows.vector_ID.float())


def test_the_gate_measures_what_it_says(toy):
    model = model_of(toy, "lap")
    found = measure_half_width(model, toy, "validation", BATCH)
    assert model.config.history_vectors == "float32"
    assert found.keep == 4 and 0.5 < found.recall <= 1
    half = model_of(toy, "lap", history_vectors="bfloat16")
    logits = [predict_logits(each, toy, "validation", BATCH) for each in (model, half)]
    assert found.largest_logit_change == pytest.approx(np.abs(logits[0] - logits[1]).max())


@pytest.mark.parametrize(
    ("recall", "change", "passed"),
    [(0.995, 5e-5, True), (0.985, 0.0, False), (1.0, -2e-4, False), (float("nan"), 0.0, True)],
)
def test_the_gate_asks_for_both(recall, change, passed):
    assert HalfWidth(recall, 4, 0.7, 0.7 + change, 0.0, 10).passed is passed


def test_the_command_says_what_it_found_and_exits_with_it(toy, tmp_path):
    config = RECIPES["lap"](str(toy.folder))
    small = ModelConfig.model_validate({"backbone": {"name": "lap", "k1": 4, "k2": 2}, **SMALL})
    config = config.model_copy(update={"model": small, "batch": BATCH})
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})})
    train(config, tmp_path / "run", progress=False)
    done = CliRunner().invoke(cli, ["half-width", str(tmp_path / "run"), "--json"])
    tree = json.loads(done.stdout)
    assert done.exit_code == (0 if tree["passed"] else 1)
    done = CliRunner().invoke(cli, ["half-width", str(tmp_path / "run")])
    assert "recall of the 4 rows" in done.stdout
