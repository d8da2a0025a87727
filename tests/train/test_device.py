"""Models, batches and objectives follow `train.device`: nothing stays behind on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pretend_device import DEVICE, Elsewhere, pretend_device
from torch.nn.functional import binary_cross_entropy_with_logits

from lcn.backbones import BACKBONES
from lcn.backbones.none import NoLifelong
from lcn.data.loader import BatchConfig, load_batches
from lcn.errors import ConfigError
from lcn.model import Model
from lcn.nn.embedding import FieldEmbedding
from lcn.objectives import OBJECTIVES, Setup, View, build_objective
from lcn.recipes import RECIPES
from lcn.train import train
from lcn.train.config import TrainConfig

OF_OBJECTIVE = {f"lap_{name}": name for name in OBJECTIVES}
BATCH = BatchConfig(size=16, group=4, lifelong=20, short=8)


@pytest.fixture(scope="module")
def batch(toy):
    return next(load_batches(toy, "train", BATCH, np.arange(16, dtype=np.int64), workers=0))


def step(toy, batch, recipe, device):
    """Logits, losses and gradients of one training step."""
    config = RECIPES[recipe]("toy")
    # The pretended device has no row-sparse gradients.
    changes = {"embedding": FieldEmbedding.Config(sparse_from=10**9)}
    if recipe in OF_OBJECTIVE:
        changes["backbone"] = NoLifelong.Config()
    torch.manual_seed(0)
    model = Model(config.model.model_copy(update=changes), toy.manifest)
    setup = Setup(toy, config.model.width, config.model.field_width, BATCH.size)
    objectives = torch.nn.ModuleList(build_objective(each, setup) for each in config.objectives)
    model.to(device)
    objectives.to(device)
    batch = batch.to(device)
    output = model(batch)
    loss = binary_cross_entropy_with_logits(output.logit_C, batch.label_C)
    if output.interest.auxiliary_logit_C is not None:
        loss = loss + binary_cross_entropy_with_logits(
            output.interest.auxiliary_logit_C, batch.label_C
        )
    view = View(batch, output.item_ID, model.tables, torch.Generator().manual_seed(0), 10)
    for objective in objectives:
        loss = loss + objective(view)
    loss.backward()
    parameters = [*model.parameters(), *objectives.parameters()]
    torch.optim.AdamW(parameters).step()
    assert all(isinstance(p, Elsewhere) == (device == DEVICE) for p in parameters)
    gradients = [p.grad.cpu() for p in parameters if p.grad is not None]
    return [output.logit_C.detach().cpu(), loss.detach().cpu(), *gradients]


@pytest.mark.parametrize("recipe", [*BACKBONES, *OF_OBJECTIVE])
def test_a_training_step_runs_on_another_device(toy, batch, recipe):
    with pretend_device():
        there = step(toy, batch, recipe, DEVICE)
    here = step(toy, batch, recipe, "cpu")
    assert len(there) == len(here)
    for one, other in zip(there, here, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "none"])
def test_levels_and_rankings_run_on_another_device(toy, batch, backbone):
    torch.manual_seed(0)
    model = Model(RECIPES[backbone]("toy").model, toy.manifest).eval()
    found = []
    for device in (DEVICE, "cpu"):
        with pretend_device(), torch.no_grad():
            moved, where = copy.deepcopy(model).to(device), batch.to(device)
            parts = moved.embed(where)
            state = moved.backbone.encode(parts.history)
            kept_CK = moved.backbone.preceding(state, parts.query, where.lifelong_C2, 5)
            levels = moved(where, levels=True).interest.levels
            found.append([kept_CK.cpu(), *(level.kept_CK.cpu() for level in levels)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", ["cuda", "no-such-device"])
def test_a_device_that_is_not_there_is_refused(toy, tmp_path, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has it")
    config = RECIPES["none"](str(toy.folder))
    wrong = config.model_copy(update={"train": TrainConfig(device=device)})
    with pytest.raises(ConfigError, match=r"train\.device is .* set train\.device to cpu"):
        train(wrong, tmp_path / "run", progress=False)


def test_data_without_fields_of_a_kind_runs_on_another_device():
    with pretend_device():
        nothing = FieldEmbedding(FieldEmbedding.Config(), (), 8).to(DEVICE)
        index_NF = torch.zeros(5, 0, dtype=torch.int64, device=DEVICE)
        assert torch.cat([nothing(index_NF), torch.ones(5, 2, device=DEVICE)], 1).shape == (5, 2)


def test_the_pretended_device_refuses_tensors_of_two_places():
    with pretend_device():
        there = torch.ones(3, device=DEVICE)
        assert (there * 2).device.type == DEVICE
        assert (there.cpu() + torch.ones(3)).tolist() == [2.0] * 3
        with pytest.raises(RuntimeError, match="on the CPU"):
            there + torch.ones(3)
